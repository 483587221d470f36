"""Writes the figures of docs/measured from the data beside them; --check fails when one is stale.

The .json files hold figures of the pages' tables; each names the command that measures them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from drawing import DOCS, box, line, svg, text, write_or_check
from evidence_tables import pictures

WIDTH, LEFT, RIGHT = 760, 190, 700
"""Of a figure, and where its axis begins and ends."""
ROW = 24
OURS = {"data": "s0", "prompts": "s0", "domain oracle": "s1"}
"""Colours of ways to route experts; the others are another colour."""
Axis = Callable[[float], float]


def data(name: str) -> Any:
    """The measured figures of docs/measured/``name``.json."""
    return json.loads((DOCS / "measured" / f"{name}.json").read_text(encoding="utf-8"))


def axis(low: float, high: float) -> Axis:
    """From a value to its place between ``LEFT`` and ``RIGHT``."""
    return lambda value: round(LEFT + (value - low) / (high - low) * (RIGHT - LEFT), 1)


def frame(at: Axis, marks: Sequence[float], top: float, bottom: float, unit: str) -> Iterator[str]:
    """Lines at ``marks`` with their values below, and the unit."""
    for mark in marks:
        yield line((at(mark), top), (at(mark), bottom), kind="line" if mark == 0 else "grid")
        yield text(at(mark), bottom + 18, f"{mark:g}", "mid small")
    yield text((LEFT + RIGHT) / 2, bottom + 40, unit, "mid small")


def fit() -> str:
    """Bars: MaxVio by model and kind of router."""
    found = data("fit")
    kinds = list(next(iter(found["models"].values())))
    height = 58 + len(found["models"]) * (len(kinds) * ROW + 34)
    at = axis(0, 1.25)

    def parts() -> Iterator[str]:
        yield from frame(at, (0, 0.25, 0.5, 0.75, 1, 1.25), 20, height - 50, f"{found['value']} (0 is even)")
        y = 34
        for model, values in found["models"].items():
            yield text(LEFT - 10, y, model.split(" (")[0], "end bold")
            y += 8
            for kind, value in values.items():
                yield text(LEFT - 10, y + 15, kind, "end small")
                yield box(LEFT, y + 3, at(value) - LEFT, ROW - 7, "s0" if kind == "moeify" else "s2")
                yield text(at(value) + 6, y + 15, f"{value:.2f}", "small")
                y += ROW
            y += 26

    return svg("MaxVio of drawn, orthogonal, k-means and fitted routers, for three models", WIDTH, height, parts())


def headroom() -> str:
    """Dots: held-out loss of five ways to route, for each seed."""
    found = data("headroom")
    kinds = {
        "domain oracle": "s1",
        "trained": "s0",
        "fitted": "s3",
        "random routing": "s2",
        "best single expert": "soft",
    }
    at = axis(3.2, 5.0)
    height = 88 + 44 * len(found["seeds"])

    def parts() -> Iterator[str]:
        for number, (kind, colour) in enumerate(kinds.items()):
            x = 60 + number * 136
            yield _dot(x, 18, colour)
            yield text(x + 12, 22, kind, "small")
        yield from frame(at, (3.25, 3.5, 3.75, 4, 4.25, 4.5, 4.75, 5), 40, height - 50, found["value"])
        for number, (seed, losses) in enumerate(found["seeds"].items()):
            y = 60 + number * 44
            yield text(LEFT - 10, y + 5, f"seed {seed}", "end")
            yield line((at(min(losses.values())), y), (at(max(losses.values())), y))
            yield from (_dot(at(losses[kind]), y, colour) for kind, colour in reversed(kinds.items()))

    title = "Held-out loss under random routing, one expert, fitted and trained routers, and the oracle"
    return svg(title, WIDTH, height, parts())


def _dot(x: float, y: float, kind: str) -> str:
    edge = ' stroke="#8c959f"' if kind == "soft" else ""
    return f'<circle cx="{x:g}" cy="{y:g}" r="6" class="{kind}"{edge}/>'


Groups = Mapping[str, Mapping[str, tuple[float, float | None]]]
"""Heading -> label -> a value and half of its interval, None where it has none."""


def differences(title: str, unit: str, groups: Groups, at: Axis, marks: Sequence[float], note: str) -> str:
    """Dots with intervals around zero; those that lie below it for certain have another colour.

    ``note`` says what lies to the left.
    """
    height = 70 + sum(len(rows) * ROW + 34 for rows in groups.values())

    def parts() -> Iterator[str]:
        yield from frame(at, marks, 20, height - 50, unit)
        yield text(at(0) - 8, 14, note, "end small")
        y = 38
        for head, rows in groups.items():
            yield text(LEFT - 10, y, head, "end bold")
            y += 10
            for label, (middle, half) in rows.items():
                yield text(LEFT - 10, y + 15, label, "end small")
                colour = "s0" if half is not None and middle + half < 0 else "s2"
                if half is not None:
                    yield line((at(middle - half), y + 11), (at(middle + half), y + 11))
                yield _dot(at(middle), y + 11, colour)
                y += ROW
            y += 24

    return svg(title, WIDTH, height, parts())


def pruning() -> str:
    """Dots with intervals: loss relative to random pruning, by criterion and share dropped."""
    groups = {
        f"{dropped} dropped": {criterion: tuple(pair) for criterion, pair in rows.items()}
        for dropped, rows in data("pruning")["dropped"].items()
    }
    return differences(
        "Loss relative to random pruning, by criterion, at 25 and 50 % dropped",
        "loss relative to random pruning, nats",
        groups,
        axis(-0.35, 0.55),
        (-0.3, -0.15, 0, 0.15, 0.3, 0.45),
        "better than chance",
    )


def evidence() -> Iterator[tuple[str, str]]:
    """Pictures of the studies behind docs/measured/evidence.md that have results, by name."""
    for name, (title, unit, note, groups) in pictures(DOCS / "measured").items():
        shown = {head: rows for head, rows in groups.items() if rows}
        if shown:
            yield name, differences(title, unit, shown, *_scale(shown), note)


def _scale(groups: Groups) -> tuple[Axis, list[float]]:
    """An axis on which all intervals and zero have room, and four to eight marks on it."""
    ends = [
        value + (half or 0) * side for rows in groups.values() for value, half in rows.values() for side in (-1, 1)
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    rough = max(high - low, 1e-6) / 6
    size = 10 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return axis(first * step, last * step), [n * step for n in range(first, last + 1)]


def domains() -> str:
    """Bars: what each way keeps of the specialists' gains."""
    found = data("domains")
    at = axis(-40, 110)
    height = 70 + len(found["ways"]) * ROW

    def parts() -> Iterator[str]:
        yield from frame(at, (-40, -20, 0, 20, 40, 60, 80, 100), 10, height - 50, found["value"])
        for number, (way, kept) in enumerate(found["ways"].items()):
            y = 14 + number * ROW
            low, high = sorted((at(0), at(kept)))
            yield text(LEFT - 10, y + 14, way, "end small")
            yield box(low, y + 3, max(high - low, 1), ROW - 7, OURS.get(way.split(",")[0], "s2"))
            yield text((high if kept >= 0 else at(0)) + 6, y + 15, f"{kept} %", "small")

    return svg("What each way keeps of the specialists' gains, mean over domains", WIDTH, height, parts())


def main() -> int:
    """Write or check the figures."""
    drawn = {"fit": fit(), "headroom": headroom(), "pruning": pruning(), "domains": domains(), **dict(evidence())}
    return write_or_check({f"measured/{name}.svg": figure for name, figure in drawn.items()})


if __name__ == "__main__":
    raise SystemExit(main())
