"""``moeify attach``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.cli._options import MixtureArgument, OutputArgument
from moeify.cli._output import Output
from moeify.cli._text import written
from moeify.upcycling.config import AttachConfig

if TYPE_CHECKING:
    from moeify.upcycling.attach import AttachReport

EXAMPLES = (
    "moeify attach ./my-moe ./my-moe-fresh --router calibrated",
    "moeify attach Qwen/Qwen1.5-MoE-A2.7B ./top2 --router zeros --top-k 2",
)
FIRST = ("router", "top_k", "route_by")


def command(out: Output, config: AttachConfig, checkpoint: MixtureArgument, output: OutputArgument = None) -> None:
    """Give a mixture of experts fresh routers, writing no other weight again."""
    from moeify.upcycling.attach import attach

    report = attach(checkpoint, output, config)
    _show(out, report)


def _show(out: Output, report: AttachReport) -> None:
    out.document(report.to_dict(), report.warnings)
    missing = [layer for layer, outlook in report.before.items() if outlook is None]
    present = [outlook.entropy for outlook in report.before.values() if outlook is not None]
    before = f"normalised entropy {_mean(present):.2f} expected" if present else ""
    if missing:
        before = f"{before}{'; ' if before else ''}no router in {len(missing)} layers"
    after = [outlook.entropy for outlook in report.after.values()]
    zeroed = len(report.biases_zeroed)
    rows = [
        ("model", report.model_type),
        ("routers", f"{len(report.after)} layers, {report.num_experts} experts"),
        ("top-k", f"{report.top_k_before} -> {report.top_k}"),
        ("before", before),
        ("after", f"normalised entropy {_mean(after):.2f} expected"),
        ("biases", f"{zeroed} of the old routers set to zero" if zeroed else ""),
        ("bytes", written(report.bytes_written, report.files_linked, report.files_copied)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} with fresh routers became {report.output}", rows)
    out.hint(f"moeify warmup {report.output} --dataset FILE")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
