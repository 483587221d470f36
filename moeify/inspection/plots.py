"""Figures of a report: loads by layer and expert, experts that meet, experts and domains."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.replacing import replacing
from moeify.errors import MissingExtraError, OutputError
from moeify.inspection.report import InspectReport, LayerReport
from moeify.inspection.shown import shown

Matrix = NDArray[np.float64]
Figure = Any
"""A matplotlib figure; matplotlib is imported only where one is drawn."""

_MISSING = "#f0f0f0"
_LABELLED = 16
_LONGEST = 60  # characters of a name in a picture
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "moeify",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    # Sans-serif fonts that browsers have; matplotlib's own follows for other pictures.
    "font.family": ["DejaVu Sans", "sans-serif"],
    "text.parse_math": False,  # a name with dollar signs is no formula
}


def save_plot(report: InspectReport, path: Path) -> None:
    """Draw every figure of ``report`` into one picture whose kind the ending of ``path`` says."""
    pyplot = _pyplot()
    panels = _panels(report)
    with pyplot.rc_context(_STYLE):
        heights = [height for height, _ in panels]
        figure, axes = pyplot.subplots(
            len(panels),
            1,
            figsize=(9, sum(heights) + 0.6),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
            facecolor="white",
        )
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=12)
        for place, (_, draw) in zip(axes[:, 0], panels, strict=True):
            draw(place)
        try:
            with replacing(path) as partial:
                figure.savefig(partial, metadata=_metadata(path))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        finally:
            pyplot.close(figure)


def figures(report: InspectReport) -> list[str]:
    """Every figure of ``report`` as SVG text of its own, on a transparent ground."""
    pyplot = _pyplot()
    drawn: list[str] = []
    with pyplot.rc_context(_STYLE):
        for height, draw in _panels(report):
            figure, axis = pyplot.subplots(figsize=(9, height + 0.3), layout="constrained")
            draw(axis)
            drawn.append(to_svg(figure, f"f{len(drawn)}-"))
            pyplot.close(figure)
    return drawn


def to_svg(figure: Figure, prefix: str) -> str:
    """A figure as the SVG element alone, the same bytes for the same figure.

    ``prefix`` leads the ids inside, so that several figures fit into one page.
    """
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=_metadata(Path("x.svg")))
    svg = text.getvalue()
    svg = _METADATA.sub("", svg[svg.index("<svg") :])
    for before in ('id="', "url(#", 'href="#'):
        svg = svg.replace(before, before + prefix)
    return svg


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _metadata(path: Path) -> dict[str, Any]:
    """No dates, so that the same report gives the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}


def _title(report: InspectReport) -> str:
    title = f"{shown(report.source, _LONGEST)}: {report.num_experts} experts, top-{report.top_k}"
    return f"{title}, {report.routing['tokens']:,} tokens" if report.routing else title


Panel = tuple[float, Callable[[Any], None]]


def _panels(report: InspectReport) -> list[Panel]:
    """Height in inches and a function that draws on an axis, for everything there is."""
    layers = report.layers
    rows = max(len(layers) * 0.16, 1.4) + 0.9
    panels: list[Panel] = []
    if report.routing is not None:
        load = np.array([layer.routing["utilization"] for layer in layers])
        gate = np.array([layer.routing["gate_mass"] for layer in layers]) * load.shape[1]
        panels.append((rows, _heat(report, load, "load, relative to the even share", centre=1.0)))
        panels.append((rows, _heat(report, gate, "gate mass, relative to the even share", centre=1.0)))
        panels.append((2.2, _lines(report)))
        panels += _pair_panels(report)
        panels += _domain_panels(report)
    if layers and layers[0].weights.get("expert_distance"):
        nearest = [_nearest(layer, report.num_experts or 1) for layer in layers]
        panels.append((rows, _heat(report, np.array(nearest), "distance to the nearest other expert")))
    return panels


def _nearest(layer: LayerReport, experts: int) -> list[float]:
    found = layer.weights.get("expert_distance")
    return found["nearest"] if found else [float("nan")] * experts


def _heat(report: InspectReport, values: Matrix, title: str, *, centre: float | None = None) -> Callable[[Any], None]:
    """Layers down, experts across; diverging around ``centre`` where there is one."""

    def draw(axis: Any) -> None:
        colours: dict[str, Any] = {"cmap": "viridis"}
        if centre is not None:
            colours = {"cmap": "RdBu_r", "vmin": 0, "vmax": 2 * centre}
        axis.set_facecolor(_MISSING)
        image = axis.imshow(values, aspect="auto", interpolation="nearest", **colours)
        axis.set_title(title)
        axis.set_xlabel("expert")
        axis.set_ylabel("layer")
        _ticks(axis.xaxis, list(range(values.shape[1])))
        _ticks(axis.yaxis, [layer.layer for layer in report.layers])
        extend = "max" if centre is not None and values.max(initial=0) > 2 * centre else "neither"
        axis.figure.colorbar(image, ax=axis, extend=extend, pad=0.01, fraction=0.03)

    return draw


def _ticks(axis: Any, names: list[Any]) -> None:
    """A label for every place, or for some where there are many."""
    step = -(-len(names) // _LABELLED)
    axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])


def _lines(report: InspectReport) -> Callable[[Any], None]:
    def draw(axis: Any) -> None:
        numbers = [layer.layer for layer in report.layers]
        worst = (report.num_experts or 1) / (report.top_k or 1) - 1
        values = [layer.routing["max_violation"] for layer in report.layers]
        entropy = [layer.routing["entropy"] for layer in report.layers]
        axis.plot(numbers, values, "o-", ms=3, color="#b2182b", label=f"MaxVio (at most {worst:g})")
        axis.plot(numbers, entropy, "s--", ms=3, color="#2166ac", label="router entropy (at most 1)")
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
    layer = report.layers[len(report.layers) // 2].layer
    sums = report.sums[layer]
    matrix = np.where(np.eye(sums.num_experts, dtype=bool), np.nan, sums.coactivation)

    def draw(axis: Any) -> None:
        axis.set_facecolor(_MISSING)
        image = axis.imshow(matrix, cmap="viridis", interpolation="nearest", vmin=0)
        chance = (sums.top_k - 1) / max(sums.num_experts - 1, 1)
        axis.set_title(f"experts that meet, layer {layer} (by chance {chance:.0%})")
        axis.set_xlabel("also visits")
        axis.set_ylabel("tokens of expert")
        _ticks(axis.xaxis, list(range(len(matrix))))
        _ticks(axis.yaxis, list(range(len(matrix))))
        axis.figure.colorbar(image, ax=axis, pad=0.01, fraction=0.03, panchor="W")

    return [(4.0, draw)]


def _domain_panels(report: InspectReport) -> list[Panel]:
    if not report.domain_names:
        return []
    telling = max(report.layers, key=lambda layer: float(layer.routing["domains"]["nmi"]))
    values = np.array(telling.routing["domains"]["specialization"]).T
    baseline = float((report.routing or {})["domains"]["baseline"])

    def draw(axis: Any) -> None:
        image = axis.imshow(values, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2 * baseline, interpolation="nearest")
        nmi = telling.routing["domains"]["nmi"]
        axis.set_title(
            f"part of a domain's tokens that visit an expert, layer {telling.layer}"
            f" (evenly {baseline:.0%}, NMI {nmi:.3f})"
        )
        axis.set_xlabel("expert")
        _ticks(axis.xaxis, list(range(values.shape[1])))
        names = [shown(name, _LONGEST) for name in report.domain_names]
        axis.set_yticks(range(len(names)), names)
        axis.figure.colorbar(image, ax=axis, pad=0.01, fraction=0.03)

    return [(max(len(report.domain_names) * 0.25, 1.0) + 0.9, draw)]
