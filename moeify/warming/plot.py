"""The load of every expert before and after, and the loss curve, as one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeify.checkpoint.replacing import replacing
from moeify.errors import OutputError
from moeify.look import COLD, figure, heat_map, save_figure
from moeify.warming.report import WarmupReport


def plot_warmup(report: WarmupReport, path: Path) -> None:
    """Write the figure of ``report`` to ``path`` (.svg or .png)."""
    panels = 3 if report.curve else 2
    height = min(max(3.2, 0.16 * len(report.layers) + 0.9), 5.7)
    with figure(figsize=(4.2 * panels, height)) as made:
        axes = made.subplots(1, panels)
        for axis, when in zip(axes, ("before", "after"), strict=False):
            _loads(axis, report, when)
        if report.curve:
            steps = [point["step"] for point in report.curve]
            axes[2].plot(steps, [point["task"] for point in report.curve], color=COLD)
            axes[2].set(title=f"{report.loss} loss in training", xlabel="step", ylabel="nats")
            axes[2].grid(alpha=0.3)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save_figure(made, partial)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _loads(axis: Any, report: WarmupReport, when: str) -> None:
    loads = [getattr(change, f"load_{when}") for change in report.layers]
    relative = [[share * report.num_experts for share in load] for load in loads]
    heat_map(
        axis,
        relative,
        f"load {when}, relative to the even share",
        rows=("layer", [change.layer for change in report.layers]),
        columns=("expert", range(report.num_experts)),
        even=1.0,
    )
