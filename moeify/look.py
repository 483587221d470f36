"""How pictures, pages and terminals look: colours, scales and fonts, decided once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from moeify.errors import MissingExtraError

Figure = Any
"""A matplotlib figure; matplotlib is imported only where one is drawn."""
WARM, COLD = "#b2182b", "#2166ac"
"""Colours of lines: the ends of the scale around an even share."""

_FEW = 12
_GOLDEN = 137.508  # degrees: neighbours are far apart, however many there are
_MISSING = "#d2d2d2"
_LABELLED = 16
_BAR = 0.14  # inches
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


def require_matplotlib() -> None:
    """Raise ``MissingExtraError`` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error


@contextmanager
def figure(**options: Any) -> Iterator[Figure]:
    """A matplotlib figure in the style of all of them, made with ``options``; it is drawn inside the context."""
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    with matplotlib.rc_context(_STYLE):
        made = MatplotlibFigure(layout="constrained", facecolor="white", **options)
        FigureCanvasAgg(made)
        yield made


def save_figure(made: Figure, path: Path) -> None:
    """Write a figure in the format that the ending of ``path`` says, without dates: the same bytes every time."""
    made.savefig(path, metadata=_undated(path))


def to_svg(made: Figure, prefix: str) -> str:
    """A figure as the SVG element alone, on a transparent ground, the same bytes for the same figure.

    ``prefix`` leads the ids inside, so that several figures fit into one page.
    """
    text = StringIO()
    made.savefig(text, format="svg", transparent=True, metadata=_undated(Path("x.svg")))
    svg = text.getvalue()
    svg = _METADATA.sub("", svg[svg.index("<svg") :])
    for before in ('id="', "url(#", 'href="#'):
        svg = svg.replace(before, before + prefix)
    return svg


def heat_map(
    axis: Any,
    values: Any,
    title: str,
    *,
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
    even: float | None = None,
    square: bool = False,
) -> None:
    """Draw ``values`` [R, C] with a colour bar beside them; ``rows`` and ``columns`` are a label and the names.

    Where there is an ``even`` share it lies in the middle of the scale, which ends at twice that.
    """
    colours: dict[str, Any] = {"cmap": "viridis"} if even is None else {"cmap": "RdBu_r", "vmin": 0, "vmax": 2 * even}
    axis.set_facecolor(_MISSING)
    axis.set_anchor("W")
    image = axis.imshow(values, aspect="equal" if square else "auto", interpolation="nearest", **colours)
    axis.set_title(title)
    axis.set_ylabel(rows[0])
    axis.set_xlabel(columns[0])
    _ticks(axis.yaxis, rows[1])
    _ticks(axis.xaxis, columns[1])
    over = even is not None and float(image.get_array().max()) > 2 * even
    extent = axis.get_window_extent()
    width = _BAR * axis.figure.dpi / (min(extent.width, extent.height) if square else extent.width)
    # Inset, so that the bar stands beside a square, however wide the figure is.
    axis.figure.colorbar(image, cax=axis.inset_axes([1 + width, 0, width, 1]), extend="max" if over else "neither")


def _ticks(axis: Any, names: Sequence[Any]) -> None:
    """A label for every place, or for some where there are many."""
    step = -(-len(names) // _LABELLED)
    axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])


def _undated(path: Path) -> dict[str, Any]:
    return {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}


def expert_colours(count: int) -> list[tuple[str, str]]:
    """For each of ``count`` experts a ground for dark letters and one for light letters, as #rrggbb."""
    colours = []
    for number in range(count):
        hue = 25 + (360 / count if count <= _FEW else _GOLDEN) * number
        # Neighbours differ in lightness too, for eyes that tell hues less well.
        step = (number % 2 if count <= _FEW else number % 3) * 0.07
        colours.append((_oklch(0.90 - step, 0.095, hue), _oklch(0.36 + step, 0.085, hue)))
    return colours


def _oklch(lightness: float, chroma: float, hue: float) -> str:
    """A colour of the space Oklch, in which equal steps look equal, as #rrggbb."""
    a, b = (chroma * part(math.radians(hue)) for part in (math.cos, math.sin))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(max(value, 0.0), 1.0))):02x}" for value in linear)


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
