"""Figures of a report: loads by layer and expert, experts that meet, experts and domains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.replacing import replacing
from moeify.errors import OutputError
from moeify.inspection.report import InspectReport, LayerReport
from moeify.inspection.shown import shown
from moeify.look import COLD, WARM, figure, heat_map, save_figure, to_svg

Matrix = NDArray[np.float64]
Panel = tuple[float, Callable[[Any], None]]
"""Height in inches, and a function that draws on an axis."""

_LONGEST = 60  # characters of a name in a picture


def save_plot(report: InspectReport, path: Path) -> None:
    """Draw every figure of ``report`` into one picture whose kind the ending of ``path`` says."""
    panels = [*_panels(report), *_layer_panels(report)]
    heights = [height for height, _ in panels]
    with figure(figsize=(9, sum(heights) + 0.6)) as made:
        axes = made.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
        made.suptitle(_title(report), x=0.01, ha="left", fontsize=12)
        for place, (_, draw) in zip(axes[:, 0], panels, strict=True):
            draw(place)
        try:
            with replacing(path) as partial:
                save_figure(made, partial)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error


def figures(report: InspectReport) -> list[str]:
    """The figures of all layers together, each as SVG text of its own, on a transparent ground."""
    drawn: list[str] = []
    for height, draw in _panels(report):
        with figure(figsize=(9, height + 0.3)) as made:
            draw(made.subplots())
            drawn.append(to_svg(made, f"f{len(drawn)}-"))
    return drawn


def _title(report: InspectReport) -> str:
    title = f"{shown(report.source, _LONGEST)}: {report.num_experts} experts, top-{report.top_k}"
    return f"{title}, {report.routing['tokens']:,} tokens" if report.routing else title


def _panels(report: InspectReport) -> list[Panel]:
    """What there is of all layers."""
    layers = report.layers
    rows = min(max(len(layers) * 0.16, 1.4), 4.8) + 0.9
    panels: list[Panel] = []
    if report.routing is not None:
        load = np.array([layer.routing["utilization"] for layer in layers])
        gate = np.array([layer.routing["gate_mass"] for layer in layers]) * load.shape[1]
        panels.append((rows, _by_layer(report, load, "load, relative to the even share", even=1.0)))
        panels.append((rows, _by_layer(report, gate, "gate mass, relative to the even share", even=1.0)))
        panels.append((2.2, _lines(report)))
    if layers and layers[0].weights.get("expert_distance"):
        nearest = [_nearest(layer, report.num_experts or 1) for layer in layers]
        panels.append((rows, _by_layer(report, np.array(nearest), "distance to the nearest other expert")))
    return panels


def _layer_panels(report: InspectReport) -> list[Panel]:
    """What there is of one layer, the one that tells most."""
    return [] if report.routing is None else [*_pair_panels(report), *_domain_panels(report)]


def _nearest(layer: LayerReport, experts: int) -> list[float]:
    found = layer.weights.get("expert_distance")
    return found["nearest"] if found else [float("nan")] * experts


def _by_layer(report: InspectReport, values: Matrix, title: str, even: float | None = None) -> Callable[[Any], None]:
    """Layers down, experts across."""
    rows, columns = ("layer", [layer.layer for layer in report.layers]), ("expert", range(values.shape[1]))
    return lambda axis: heat_map(axis, values, title, rows=rows, columns=columns, even=even)


def _lines(report: InspectReport) -> Callable[[Any], None]:
    def draw(axis: Any) -> None:
        numbers = [layer.layer for layer in report.layers]
        worst = (report.num_experts or 1) / (report.top_k or 1) - 1
        values = [layer.routing["max_violation"] for layer in report.layers]
        entropy = [layer.routing["entropy"] for layer in report.layers]
        axis.plot(numbers, values, "o-", ms=3, color=WARM, label=f"MaxVio (at most {worst:g})")
        axis.plot(numbers, entropy, "s--", ms=3, color=COLD, label="router entropy (at most 1)")
        axis.set_ylim(0, max(1.05, max(values) * 1.1))
        axis.set_title("balance and decision")
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0)

    return draw


def _pair_panels(report: InspectReport) -> list[Panel]:
    if (report.top_k or 1) < 2 or not report.sums:
        return []
    layer = report.telling.layer
    sums = report.sums[layer]
    ratio = sums.coactivation / np.where(sums.coactivation_by_chance > 0, sums.coactivation_by_chance, np.nan)
    experts, title = range(len(ratio)), f"experts that meet, relative to chance, layer {layer}"

    def draw(axis: Any) -> None:
        rows, columns = ("tokens of expert", experts), ("also visits", experts)
        heat_map(axis, ratio, title, rows=rows, columns=columns, even=1.0, square=True)

    return [(4.0, draw)]


def _domain_panels(report: InspectReport) -> list[Panel]:
    if not report.domain_names:
        return []
    telling = report.telling
    values = np.array(telling.routing["domains"]["specialization"]).T
    baseline = float((report.routing or {})["domains"]["baseline"])
    names = [shown(name, _LONGEST) for name in report.domain_names]
    title = (
        f"part of a domain's tokens that visit an expert, layer {telling.layer}"
        f" (evenly {baseline:.0%}, NMI {telling.routing['domains']['nmi']:.3f})"
    )

    def draw(axis: Any) -> None:
        heat_map(axis, values, title, rows=("", names), columns=("expert", range(values.shape[1])), even=baseline)

    return [(max(len(names) * 0.25, 1.0) + 0.9, draw)]
