"""``moeify extract``."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli._options import (
    ChecksumOption,
    ForceOption,
    JsonOption,
    OutputArgument,
    QuietOption,
    RevisionOption,
    epilog,
)
from moeify.cli._output import Output, count, size
from moeify.pruning.config import ExtractConfig

EPILOG = epilog(
    "moeify extract ./my-moe ./expert-3 --expert 3",
    "moeify extract ./my-moe --expert 0 --json",
)
_DEFAULT = ExtractConfig()


def command(
    checkpoint: Annotated[str, typer.Argument(help="Mixture of experts: a folder or a Hub id.")],
    output: OutputArgument = None,
    expert: Annotated[int, typer.Option(help="Number of the expert.")] = _DEFAULT.expert,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weights file.")
    ] = _DEFAULT.max_shard_size,
    revision: RevisionOption = None,
    force: ForceOption = False,
    checksum: ChecksumOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one expert of a mixture as a dense checkpoint of the original family."""
    config = ExtractConfig(
        expert=expert,
        max_shard_size=max_shard_size,
        revision=revision,
        force=force,
        checksum=checksum,
    )
    from moeify.pruning.extract import extract

    out = Output(as_json=as_json, quiet=quiet)
    with out.bytes_bar("extracting") as progress:
        report = extract(checkpoint, output, config, progress=progress)
    out.document(report.to_dict())
    rows = [
        ("model", report.model_type),
        ("expert", f"{report.expert} in {len(report.moe_layers)} layers"),
        ("parameters", count(report.params)),
        ("bytes", size(report.bytes_written)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} became {report.output}", rows)
