"""The part of the page that shows one layer at a time: its tokens, its experts, and which of them meet."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.inspection.report import InspectReport, LayerReport
from moeify.inspection.shown import escaped, shown
from moeify.look import expert_colours

if TYPE_CHECKING:
    from moeify.inspection.token_routes import TokenRoutes
    from moeify.routing.statistics import LayerRouting

_WORDS = 60  # characters of a token in a table
_MANY = 16  # experts of a token, of which the page holds those with most weight
_TELLING = 12  # colours that are told apart; more experts have numbers beside them


def layer_section(report: InspectReport) -> str:
    """Controls and what they choose; nothing where no text was routed."""
    if report.routing is None and report.tokens is None:
        return ""
    routes = report.tokens
    place = [layer.layer for layer in report.layers].index(report.telling.layer)
    parts = ["<h2>Layer by layer</h2>", _controls(report, place)]
    if routes is not None:
        parts.append(_tokens(routes))
    if report.routing is not None:
        parts.append(_experts(report))
    if _meet(report):
        parts.append(_MEETING)
    # No "<" in it: a script element ends at the first "</script", whatever it holds.
    data = json.dumps(_data(report), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    parts.append(f'<script type="application/json" id="layer-data">{data}</script>')
    return "\n".join(parts)


def layer_style(report: InspectReport) -> str:
    """The colours of experts."""
    routes = report.tokens
    colours = [] if routes is None else expert_colours(routes.num_experts // routes.slices)
    light, dark = (
        " ".join(f".e{n} {{ background: {pair[scheme]}; }}" for n, pair in enumerate(colours)) for scheme in (0, 1)
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"


def _controls(report: InspectReport, place: int) -> str:
    last = len(report.layers) - 1
    controls = [
        f'<label class="wide">layer <input id="layer" type="range" min="0" max="{last}" value="{place}">'
        '<output id="layer-name"></output></label>'
    ]
    routes = report.tokens
    if routes is not None and routes.slices > 1:
        last = routes.slices - 1
        controls.append(
            f'<label class="wide">slice <input id="slice" type="range" min="0" max="{last}" value="0">'
            '<output id="slice-name"></output></label>'
        )
    if routes is not None:
        checked = " checked" if _numbered(routes) else ""
        controls.append(f'<label><input id="numbers" type="checkbox"{checked}> expert numbers</label>')
    missing = (
        '<noscript><p class="note">Layers are chosen by a script inside this page: allow it to run.</p></noscript>'
    )
    return f'<div class="controls">{"".join(controls)}</div>{missing}'


def _numbered(routes: TokenRoutes) -> bool:
    return routes.num_experts // routes.slices > _TELLING


def _tokens(routes: TokenRoutes) -> str:
    part = " of the chosen slice" if routes.slices > 1 else ""
    kind = ' class="numbered"' if _numbered(routes) else ""
    return (
        f'<div id="tokens"{kind}>\n<h3>Where each token goes</h3>\n'
        f'<p class="note">Coloured by its first expert{part}. Point at a token for all of them and their weights;'
        ' choose an expert to see its tokens alone.</p>\n<div id="legend" class="legend"></div>\n'
        + "\n".join(_passages(routes))
        + "\n</div>"
    )


def _passages(routes: TokenRoutes) -> Iterator[str]:
    before = None
    for passage in routes.passages:
        spans = [
            f'<span class="piece{" framing" if framing else ""}">{_visible(text)}</span>'
            for text, framing in zip(passage.pieces.texts, passage.pieces.framing, strict=True)
        ]
        title = "" if passage.domain in (None, before) else f"<h4>{escaped(passage.domain)}</h4>"
        before = passage.domain
        more = " ..." if passage.pieces.cut else ""
        yield f'{title}<p class="text" dir="auto">{"".join(spans)}{more}</p>'


def _visible(text: str) -> str:
    """A token's text; line ends are marked, as is the place of a token that shares its character with others."""
    lines = text.replace("\r", "").replace("\t", " ").split("\n")
    return "\u21b5\n".join(map(escaped, lines)) or "\u00b7"


def _experts(report: InspectReport) -> str:
    heads = ["layer", "expert", "load", "gate mass", *report.domain_names]
    heads += ["meets most"] if _meet(report) else []
    heads += ["tokens seen most, and how many of them"] if _vocabulary(report) else []
    words = (1, len(heads) - 1) if _vocabulary(report) else (1,)
    cells = "".join(
        f'<th scope="col"{" class=words" if place in words else ""}><button>{escaped(head)}</button></th>'
        for place, head in enumerate(heads)
    )
    even = f" Of a domain's tokens, evenly {_baseline(report):.1%} visit an expert." if report.domain_names else ""
    return (
        "<h3>Experts</h3>\n"
        f'<p class="note">Load and gate mass are relative to the even share, 1.{even}</p>\n'
        '<p><input id="search" type="search" placeholder="find a token, a domain or an expert in all layers"'
        ' aria-label="search"> <span id="hits"></span></p>\n'
        f'<div class="scroll"><table id="experts" class="sortable"><thead><tr>{cells}</tr></thead>'
        "<tbody></tbody></table></div>"
    )


_MEETING = (
    "<h3>Experts that meet</h3>\n"
    '<p class="note">Of an expert\'s tokens (down), those that also visit another one (across), against chance.</p>\n'
    '<canvas id="meeting" role="img" aria-label="experts that meet"></canvas>\n'
    '<p class="key">never <i></i> twice as often as by chance, or more</p>'
)


def _meet(report: InspectReport) -> bool:
    return (report.top_k or 1) > 1 and bool(report.sums)


def _vocabulary(report: InspectReport) -> bool:
    return any("vocabulary" in layer.routing for layer in report.layers)


def _baseline(report: InspectReport) -> float:
    domains = (report.routing or {}).get("domains")
    return float(domains["baseline"]) if domains else 1.0


def _data(report: InspectReport) -> dict[str, Any]:
    routes = report.tokens
    labels, count = report.expert_labels, report.num_experts or 0
    data: dict[str, Any] = {
        "numbers": [layer.layer for layer in report.layers],
        "names": [shown(f"{n} {labels[n]}" if labels else n, _WORDS) for n in range(count)],
        "domains": [shown(name, _WORDS) for name in report.domain_names],
        "baseline": _baseline(report),
    }
    if report.routing is not None:
        data["layers"] = [_layer(report, layer) for layer in report.layers]
    if routes is not None:
        data["routes"] = _routes(routes)
    return data


def _layer(report: InspectReport, layer: LayerReport) -> dict[str, Any]:
    figures, count = layer.routing, layer.num_experts
    found: dict[str, Any] = {
        "layer": layer.layer,
        "load": _short(figures["utilization"]),
        "gate": _short([share * count for share in figures["gate_mass"]]),
    }
    if "domains" in figures:
        found["domains"] = [_short(row) for row in figures["domains"]["specialization"]]
        found["own"] = figures["domains"]["own_domain"]
    if "vocabulary" in figures:
        found["tokens"] = [
            [(shown(token["token"], _WORDS), *_short([token["fraction"]])) for token in seen]
            for seen in figures["vocabulary"]
        ]
    if _meet(report):
        sums = report.sums[layer.layer]
        found |= {"meeting": _square(sums), "meets": _partners(sums)}
    return found


def _square(sums: LayerRouting) -> str:
    """How often experts meet [E, E], a byte each: 128 by chance, 255 twice that, 0 for those that cannot."""
    chance = sums.coactivation_by_chance
    ratio = sums.coactivation / np.where(chance > 0, chance, 1)
    values = np.where(chance > 0, 1 + np.rint(127 * np.clip(ratio, 0, 2)), 0).astype(np.uint8)
    return base64.b64encode(values.tobytes()).decode()


def _partners(sums: LayerRouting) -> list[tuple[int, float] | None]:
    """Whom each expert meets most, and in how much of its tokens."""
    matrix = sums.coactivation
    best = matrix.argmax(1)
    shares = matrix[np.arange(len(best)), best]
    return [(int(n), float(f"{share:.3g}")) if share > 0 else None for n, share in zip(best, shares, strict=True)]


def _routes(routes: TokenRoutes) -> dict[str, Any]:
    top_k = routes.experts(routes.layers[0]).shape[1]
    kept = min(top_k, _MANY) if routes.slices == 1 else top_k
    return {
        "top_k": kept,
        "slices": routes.slices,
        "colours": routes.num_experts // routes.slices,
        "experts": [routes.experts(layer)[:, :kept].ravel().tolist() for layer in routes.layers],
        "weights": [
            np.rint(1000 * routes.weights(layer)[:, :kept]).astype(int).ravel().tolist() for layer in routes.layers
        ],
    }


def _short(values: Any) -> list[float]:
    return [float(f"{float(value):.3g}") for value in values]
