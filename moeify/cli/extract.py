"""``moeify extract``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.cli._options import MixtureArgument, OutputArgument
from moeify.cli._output import Output
from moeify.cli._text import count, size
from moeify.pruning.config import ExtractConfig

if TYPE_CHECKING:
    from moeify.pruning.report import ExtractReport

EXAMPLES = (
    "moeify extract ./my-moe ./expert-3 --expert 3",
    "moeify extract ./my-moe --expert 0 --json",
    "moeify extract ./my-moe ./both --expert 0,3 --shares 0.7,0.3",
    "moeify extract ./my-moe ./best --by reap --dataset book.txt",
)
FIRST = ("expert", "shares", "by", "dataset", "scores")


def command(out: Output, config: ExtractConfig, checkpoint: MixtureArgument, output: OutputArgument = None) -> None:
    """Write one expert of a mixture, or a mean of several, as a dense checkpoint."""
    from moeify.pruning.extract import extract

    report = extract(checkpoint, output, config)
    out.document(report.to_dict(), report.warnings)
    rows = [
        ("model", report.model_type),
        ("expert", f"{_named(report)} in {len(report.moe_layers)} layers"),
        ("parameters", count(report.params)),
        ("bytes", size(report.bytes_written)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} became {report.output}", rows)


def _named(report: ExtractReport) -> str:
    if report.by is not None:
        return f"{', '.join(map(str, report.chosen.values()))} by {report.by}"
    if report.expert is not None:
        return str(report.expert)
    shares = zip(report.experts, report.weights, strict=True)
    return " + ".join(f"{expert} x {share:.3g}" for expert, share in shares)
