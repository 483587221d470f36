"""``moeify replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeify.cli._errors import EXIT_FINDINGS
from moeify.cli._output import Output
from moeify.replaying import ReplayConfig

EXAMPLES = (
    "moeify replay ./my-moe/moeify.json ./again",
    "moeify replay ./my-moe ./again --sources my-dense=/data/my-dense --sources text.jsonl=/data/text.jsonl",
)
FIRST = ("sources",)


def command(
    out: Output,
    config: ReplayConfig,
    record: Annotated[Path, typer.Argument(help="A moeify.json, or the folder that holds it.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Repeat the recorded steps of a checkpoint, and hold the result against the recorded checksums."""
    from moeify.replaying import replay

    report = replay(record, output, config)
    out.document(report.to_dict(), report.warnings)
    rows = [
        ("steps", ", ".join(report.steps)),
        ("same", f"{len(report.same)} files by checksum"),
        ("no checksum", f"{len(report.unsummed)} files of the recorded size" if report.unsummed else ""),
        ("different", ", ".join(report.different)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} again in {report.output}", rows)
    if report.different and not report.trained:
        raise typer.Exit(EXIT_FINDINGS)
