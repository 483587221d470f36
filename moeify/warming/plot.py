"""The load of every expert before and after, and the loss curve, as one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeify.checkpoint.replacing import replacing
from moeify.errors import MissingExtraError, OutputError
from moeify.warming.report import WarmupReport


def check_plotting() -> None:
    """Raise ``MissingExtraError`` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot") from error


def plot_warmup(report: WarmupReport, path: Path) -> None:
    """Write the figure of ``report`` to ``path`` (.svg or .png)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 3 if report.curve else 2
    figure: Any = Figure(figsize=(4.2 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    top = max(max(*c.load_before, *c.load_after) for c in report.layers) * report.num_experts
    for axis, when in zip(axes, ("before", "after"), strict=False):
        _heatmap(figure, axis, report, when, top)
    if report.curve:
        axes[2].plot(
            [point["step"] for point in report.curve], [point["task"] for point in report.curve], color="#4062bb"
        )
        axes[2].set(title=f"{report.loss} loss in training", xlabel="step", ylabel="nats")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            figure.savefig(partial)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _heatmap(figure: Any, axis: Any, report: WarmupReport, when: str, top: float) -> None:
    loads = [getattr(change, f"load_{when}") for change in report.layers]
    relative = [[share * report.num_experts for share in load] for load in loads]
    image = axis.imshow(relative, aspect="auto", cmap="viridis", vmin=0, vmax=top)
    axis.set(title=f"load {when} (1 is even)", xlabel="expert", ylabel="layer")
    axis.set_yticks(range(len(report.layers)), [change.layer for change in report.layers])
    figure.colorbar(image, ax=axis)
