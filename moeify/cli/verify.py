"""``moeify verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli._output import Output
from moeify.upcycling.config import VerifyConfig

EXAMPLES = (
    "moeify verify bert-base-uncased bert-base-uncased-moe-e8-k2",
    "moeify verify Qwen/Qwen3-0.6B@main me/qwen3-moe@warm",
    "moeify verify ./my-dense ./my-moe --text book.txt --batch 4 --seq-len 128 --json",
)
FIRST = ("text", "batch", "seq_len", "dtype")


def command(
    out: Output,
    config: VerifyConfig,
    dense: Annotated[str, typer.Argument(help="Dense checkpoint: a folder, ID or ID@REV.")],
    moe: Annotated[str, typer.Argument(help="Mixture to compare: a folder, ID or ID@REV.")],
) -> None:
    """Run a dense model and its mixture on the same tokens and compare the outputs."""
    from moeify.upcycling.verify import verify

    report = verify(dense, moe, config)
    out.document(report.to_dict(), report.warnings)
    rows = [
        ("compared", f"{', '.join(report.compared)} on {report.tokens} tokens, {report.dtype}"),
        ("max abs diff", f"{report.max_abs_diff:.3g}"),
        ("relative diff", f"{report.relative_diff:.3g}"),
        ("top-1 agreement", f"{report.top1_agreement:.2%}"),
        ("KL divergence", f"{report.kl:.3g} nats"),
        ("bit-exact", "yes" if report.bit_exact else "no"),
    ]
    out.table(f"{report.dense} and {report.moe}", rows)
