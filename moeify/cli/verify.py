"""``moeify verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from moeify.cli._options import JsonOption, QuietOption, SeedOption, epilog
from moeify.cli._output import Output
from moeify.upcycling.config import Dtype, VerifyConfig

EPILOG = epilog(
    "moeify verify bert-base-uncased bert-base-uncased-moe-e8-k2",
    "moeify verify Qwen/Qwen3-0.6B@main me/qwen3-moe@warm",
    "moeify verify ./my-qwen3 ./my-moe --text book.txt --batch 4 --length 128 --json",
)
_DEFAULT = VerifyConfig()


def command(
    dense: Annotated[str, typer.Argument(help="Dense checkpoint: a folder or ID[@REV].")],
    moe: Annotated[str, typer.Argument(help="Mixture to compare: a folder or ID[@REV].")],
    text: Annotated[
        Path | None, typer.Option(help="Text to run on; random tokens if left out.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences.")] = _DEFAULT.batch,
    length: Annotated[int, typer.Option(help="Tokens of each sequence.")] = _DEFAULT.length,
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", help="Dtype to compute in.")
    ] = _DEFAULT.dtype,
    seed: SeedOption = _DEFAULT.seed,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a dense model and its mixture on the same tokens and compare the outputs."""
    config = VerifyConfig(
        text=text, batch=batch, length=length, dtype=cast(Dtype, dtype), seed=seed
    )
    from moeify.upcycling.verify import verify

    out = Output(as_json=as_json, quiet=quiet)
    with out.status("running both models"):
        report = verify(dense, moe, config)
    out.document(report.to_dict())
    rows = [
        ("compared", f"{', '.join(report.compared)} on {report.tokens} tokens, {report.dtype}"),
        ("max abs diff", f"{report.max_abs_diff:.3g}"),
        ("relative diff", f"{report.relative_diff:.3g}"),
        ("top-1 agreement", f"{report.top1_agreement:.2%}"),
        ("KL divergence", f"{report.kl:.3g} nats"),
        ("bit-exact", "yes" if report.bit_exact else "no"),
    ]
    out.table(f"{report.dense} and {report.moe}", rows)
    for warning in report.warnings:
        out.warning(warning)
