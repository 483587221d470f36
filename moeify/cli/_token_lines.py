"""Text whose tokens are coloured by their first expert, for terminals with colours and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from moeify.cli._output import Output
from moeify.look import expert_colours

if TYPE_CHECKING:
    from moeify.inspection.report import LayerReport
    from moeify.inspection.token_routes import TokenRoutes

_TELLING = 12  # colours that are told apart; more experts have numbers beside them
_LISTED = 16
_MARKS = str.maketrans({"\n": "\u21b5", "\r": "", "\t": " "})

Part = tuple[str, str | None]


def show_tokens(out: Output, routes: TokenRoutes, layers: Sequence[LayerReport]) -> None:
    """Each passage once for each of ``layers``, and what the colours mean; of slices the first."""
    count = routes.num_experts // routes.slices
    colours = [f"#000000 on {light}" for light, _ in expert_colours(count)] if out.coloured else [None] * count
    for layer in layers:
        first = routes.first(layer.layer).tolist()
        part = f", slice 0 of {routes.slices}" if routes.slices > 1 else ""
        parts: list[Part] = []
        for passage, pieces in _passages(routes, first):
            parts.append((f"{passage}\n" if passage else "", "bold"))
            for expert, texts in pieces:
                numbered = not out.coloured or count > _TELLING
                mark = f"[{expert}]" if numbered else ""
                parts.append((mark + "".join(texts), colours[expert]))
            parts.append(("\n", None))
        out.paragraph(f"tokens by their first expert, layer {layer.layer}{part}", parts[:-1])
        out.paragraph("", list(_legend(routes, first, colours)))


def _passages(routes: TokenRoutes, first: list[int]) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Each passage's domain and its runs of pieces that go to the same expert."""
    place, before = 0, None
    for passage in routes.passages:
        found = passage.pieces
        shown = [text.translate(_MARKS) or "\u00b7" for text in found.texts]
        if found.cut:
            shown[-1] += " ..."
        pairs = zip(first[place : place + len(found)], shown, strict=True)
        runs = [(expert, [text for _, text in run]) for expert, run in groupby(pairs, key=lambda pair: pair[0])]
        yield "" if passage.domain in (None, before) else str(passage.domain), runs
        before = passage.domain
        place += len(found)


def _legend(routes: TokenRoutes, first: list[int], colours: Sequence[str | None]) -> Iterator[Part]:
    """The experts that come first for most tokens, in the order of their numbers."""
    most = Counter(first).most_common()
    yield "experts: ", None
    for place, (expert, count) in enumerate(sorted(most[:_LISTED])):
        yield ", " if place else "", None
        yield f" {routes.name(expert)} " if colours[expert] else routes.name(expert), colours[expert]
        yield f" {count / len(first):.0%}", None
    if len(most) > _LISTED:
        yield f" and {len(most) - _LISTED} more", None
