"""Writes the diagrams of docs/: upcycling.svg, slices.svg and commands.svg; --check fails when one is stale."""

from __future__ import annotations

from collections.abc import Iterator

from drawing import arrow, box, line, svg, text, write_or_check

SLICES, COPIES = 4, 4
CHOSEN = (1, 3, 0, 2)
"""The copy that the drawn token visits in each slice."""
TOP, STEP = 62, 58


def slices() -> str:
    """A feed-forward network in slices."""
    title = f"A feed-forward network cut into {SLICES} slices, each with {COPIES} copies and a router of its own"
    return svg(title, 760, 330, (*_dense_slices(), *_mixture_of_slices()))


def _dense_slices() -> Iterator[str]:
    """The network, its neurons from top to bottom."""
    yield text(105, 24, "dense: F neurons")
    for number in range(SLICES):
        yield box(60, TOP + number * STEP, 90, STEP - 2, f"s{number}")
        yield text(105, TOP + number * STEP + 33, f"F / {SLICES}", "mid on")
    yield text(105, TOP + SLICES * STEP + 26, "y = F(x)")
    middle = TOP + SLICES * STEP // 2
    yield arrow((172, middle), (204, middle))


def _mixture_of_slices() -> Iterator[str]:
    """A row for each slice: its router and its copies, of which one is chosen."""
    yield text(265, 24, "a router each")
    yield text(475, 24, f"{COPIES} copies each, of which a token visits one")
    middle = TOP + SLICES * STEP // 2
    for number, chosen in enumerate(CHOSEN):
        y = TOP + number * STEP
        yield box(225, y + 8, 80, STEP - 18, "router")
        yield text(265, y + 33, "softmax")
        yield line((305, y + STEP // 2 - 1), (325, y + STEP // 2 - 1))
        for copy in range(COPIES):
            on = copy == chosen
            yield box(330 + copy * 74, y + 8, 66, STEP - 18, f"s{number}" if on else "copy")
            words = "w = 1" if on else f"{number * COPIES + copy}"
            yield text(363 + copy * 74, y + 33, words, "mid on" if on else "mid small")
        yield line((622, y + STEP // 2 - 1), (648, y + STEP // 2 - 1), (648, middle))
    yield line((648, middle), (672, middle))
    yield text(710, middle + 5, "sum = y")
    words = f"one choice in each slice: {COPIES**SLICES} combinations, the cost of F"
    yield text(475, TOP + SLICES * STEP + 26, words)


def upcycling() -> str:
    """A layer before and after."""
    title = "A layer before and after: its feed-forward network becomes copies of itself behind a router"
    return svg(title, 760, 300, (*_dense_layer(), *_moe_layer()))


def _dense_layer() -> Iterator[str]:
    yield text(110, 24, "a dense layer", "mid bold")
    yield from _column(110, 160)
    yield box(40, 130, 140, 60, "s0")
    yield text(110, 165, "FFN", "mid on")
    yield text(110, 280, "y = FFN(x)")
    yield text(265, 144, "moeify", "mid bold")
    yield text(265, 164, "upcycle", "mid bold")
    yield arrow((220, 178), (310, 178))


def _column(x: int, middle: int) -> Iterator[str]:
    """Attention above, what is added below, and the arrows between."""
    yield box(x - 70, 46, 140, 36, "soft")
    yield text(x, 69, "attention, unchanged", "mid small")
    yield arrow((x, 82), (x, middle - 32))
    yield arrow((x, middle + 30), (x, 252))


def _moe_layer() -> Iterator[str]:
    chosen = {1: "w = 0.6", 4: "w = 0.4"}
    yield text(545, 24, "a mixture of experts", "mid bold")
    yield box(475, 46, 140, 36, "soft")
    yield text(545, 69, "attention, unchanged", "mid small")
    yield arrow((545, 82), (545, 98))
    yield box(495, 100, 100, 34, "router")
    yield text(545, 122, "router")
    for number in range(6):
        x = 350 + number * 67
        on = number in chosen
        if on:
            yield arrow((545, 134), (545, 146), (x + 28, 146), (x + 28, 160))
            yield line((x + 28, 202), (x + 28, 236), (545, 236))
        yield box(x, 162, 57, 40, "s0" if on else "copy")
        yield text(x + 28, 187, f"FFN {number + 1}", "mid on small" if on else "mid small")
        if on:
            yield text(x + 34, 222, chosen[number], "small")
    yield arrow((545, 236), (545, 256))
    yield text(545, 280, "y = 0.6 FFN 2(x) + 0.4 FFN 5(x): while all are copies, FFN(x)")


def commands() -> str:
    """Which command leads from where to where."""
    title = "From a dense model to a published mixture: which command leads from where to where"
    return svg(title, 680, 320, (*_states(), *_paths()))


PLACES = {
    "dense model": (90, 60, "soft"),
    "several models": (90, 150, "soft"),
    "mixture": (330, 105, "s0"),
    "even routers": (570, 60, "s1"),
    "trained by you": (570, 150, "s1"),
    "fewer experts": (330, 235, "s2"),
    "one dense model": (90, 235, "soft"),
    "on the Hub": (570, 235, "s3"),
}


def _states() -> Iterator[str]:
    for name, (x, y, kind) in PLACES.items():
        yield box(x - 70, y - 22, 140, 44, kind)
        yield text(x, y + 5, name, "mid" if kind == "soft" else "mid on")


def _paths() -> Iterator[str]:
    yield arrow((160, 60), (210, 60), (210, 95), (258, 95))
    yield text(214, 54, "upcycle", "bold small")
    yield arrow((160, 150), (210, 150), (210, 115), (258, 115))
    yield text(166, 174, "upcycle --experts-from", "bold small")
    yield arrow((400, 95), (450, 95), (450, 60), (498, 60))
    yield text(420, 52, "warmup", "bold small")
    yield arrow((570, 82), (570, 126))
    yield text(578, 108, "your training", "small")
    yield arrow((330, 127), (330, 211))
    yield text(338, 196, "prune", "bold small")
    yield line((258, 245), (165, 245))
    yield line((172, 240), (165, 245), (172, 250))
    yield text(212, 236, "extract", "bold small mid")
    yield arrow((400, 235), (498, 235))
    yield text(432, 228, "push", "bold small")
    yield arrow((570, 172), (570, 211))
    yield text(578, 196, "push", "bold small")
    yield text(330, 302, "at any time: inspect (what is inside, where tokens go), verify (same outputs), attach, add")


def main() -> int:
    """Write or check the drawings."""
    return write_or_check({"slices.svg": slices(), "upcycling.svg": upcycling(), "commands.svg": commands()})


if __name__ == "__main__":
    raise SystemExit(main())
