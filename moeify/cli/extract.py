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
    number_list,
    whole_numbers,
)
from moeify.cli._output import Output, count, size
from moeify.pruning.config import ExtractConfig

EPILOG = epilog(
    "moeify extract ./my-moe ./expert-3 --expert 3",
    "moeify extract ./my-moe --expert 0 --json",
    "moeify extract ./my-moe ./both --experts 0,3 --weights 0.7,0.3",
)
_DEFAULT = ExtractConfig()


def command(
    checkpoint: Annotated[str, typer.Argument(help="Mixture of experts: a folder or a Hub id.")],
    output: OutputArgument = None,
    expert: Annotated[int, typer.Option(help="Number of the expert.")] = _DEFAULT.expert,
    experts: Annotated[
        str | None, typer.Option(help="Average these instead.", metavar="N,...")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Their weights in the mean.", metavar="W,...")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weights file.")
    ] = _DEFAULT.max_shard_size,
    revision: RevisionOption = None,
    force: ForceOption = False,
    checksum: ChecksumOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write one expert of a mixture, or a mean of several, as a dense checkpoint."""
    config = ExtractConfig(
        expert=expert, experts=whole_numbers("experts", experts),
        weights=number_list("weights", weights), max_shard_size=max_shard_size,
        revision=revision, force=force, checksum=checksum,
    )  # fmt: skip
    from moeify.pruning.extract import extract

    out = Output(as_json=as_json, quiet=quiet)
    with out.bytes_bar("extracting") as progress:
        report = extract(checkpoint, output, config, progress=progress)
    out.document(report.to_dict())
    for warning in report.warnings:
        out.warning(warning)
    several = [f"{e} x {w:.3g}" for e, w in zip(report.experts, report.weights, strict=True)]
    named = " + ".join(several) if report.expert is None else str(report.expert)
    rows = [
        ("model", report.model_type),
        ("expert", f"{named} in {len(report.moe_layers)} layers"),
        ("parameters", count(report.params)),
        ("bytes", size(report.bytes_written)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} became {report.output}", rows)
