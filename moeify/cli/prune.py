"""``moeify prune``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.cli._options import MixtureArgument, OutputArgument, PushToOption
from moeify.cli._output import Output
from moeify.cli._pushing import check_push_target, push_after
from moeify.cli._text import count, loss, size
from moeify.pruning.config import PruneConfig

if TYPE_CHECKING:
    from moeify.pruning.report import PruneReport

EXAMPLES = (
    "moeify prune ./my-moe ./half --ratio 0.5 --by reap --dataset book.txt",
    "moeify prune ./my-moe ./quarter --keep 2 --scores ./half/scores.json",
    "moeify prune Qwen/Qwen3-30B-A3B ./64 --keep 64 --by aimer",
    "moeify prune ./my-moe ./dense --keep 1 --dense",
)
FIRST = ("keep", "ratio", "drop", "by", "dataset", "scores", "merge", "rescale", "evaluate", "dense")


def command(
    out: Output,
    config: PruneConfig,
    checkpoint: MixtureArgument,
    output: OutputArgument = None,
    push_to: PushToOption = None,
) -> None:
    """Take experts out of a mixture, by byte ranges, and measure it against chance."""
    check_push_target(push_to)
    from moeify.pruning.prune import prune

    report = prune(checkpoint, output, config)
    _show(out, report)
    push_after(out, report.output, push_to)


def _show(out: Output, report: PruneReport) -> None:
    out.document(report.to_dict(), report.warnings)
    rows = [
        ("model", report.model_type),
        (
            "experts",
            f"{report.num_experts_before} -> {report.num_experts} in"
            f" {len(report.kept)} layers, top-{report.top_k}, by {report.by}",
        ),
        ("parameters", f"{count(report.params_before)} -> {count(report.params_after)}"),
        ("bytes", f"{size(report.bytes_before)} -> {size(report.bytes_written)}"),
        *_calibration(report),
        *_layers(report),
        *_loss(report),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} became {report.output}", rows)


def _calibration(report: PruneReport) -> list[tuple[str, str]]:
    how = ", one layer in memory at a time" if report.layer_by_layer else ""
    return [("scores from", f"{report.tokens:,} tokens{how}")] if report.tokens else []


def _layers(report: PruneReport) -> list[tuple[str, str]]:
    """Kept and dropped experts of the first layers, with their scores."""
    rows = []
    for layer, dropped in list(report.dropped.items())[:4]:
        scores = report.scores.get(layer)
        named = [f"{e} ({scores[e]:.3g})" if scores else str(e) for e in dropped[:8]]
        more = f" and {len(dropped) - 8} more" if len(dropped) > 8 else ""
        rows.append((f"layer {layer} lost", ", ".join(named) + more))
    if len(report.dropped) > 4:
        rows.append(("", f"and {len(report.dropped) - 4} more layers: see --json"))
    if any(report.protected.values()):
        number = sum(map(len, report.protected.values()))
        rows.append(("protected", f"{number} super experts"))
    if report.gate_inflation:
        worst = max(report.gate_inflation.values())
        state = "folded into the down projections" if report.rescaled else "see --rescale"
        rows.append(("weights grow", f"up to {worst:.2f} x, {state}"))
    return rows


def _loss(report: PruneReport) -> list[tuple[str, str]]:
    held = report.held_out
    if held is None:
        return []
    both = f"{loss(held.before, held.before_error)} before, {loss(held.after, held.after_error)} after"
    rows = [
        ("held-out loss", both),
        ("its change", loss(held.after - held.before, held.change_error)),
        ("random pruning", f"{held.random_mean:.4f} +- {held.random_std:.4f} over {len(held.random)} seeds"),
        (
            "verdict",
            "better than chance" if held.better_than_chance else "not clearly better than chance on this text",
        ),
    ]
    if held.dropped is not None:
        rows.insert(2, ("without merging", f"{held.dropped:.4f}"))
    return rows
