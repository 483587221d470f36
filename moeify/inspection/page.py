"""A report as one HTML page: tables that sort, figures inside, nothing fetched from anywhere."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moeify.checkpoint.replacing import replacing
from moeify.errors import OutputError
from moeify.inspection.plots import figures
from moeify.inspection.report import InspectReport
from moeify.inspection.shown import losses_by_routing, shown

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #d5d5d5; --bar: #2166ac; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --line: #3a3d42; --bar: #67a9cf; }
  /* The figures are drawn in dark ink: invert their lightness, keep their hues. */
  figure svg { filter: invert(0.92) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .words { text-align: left; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.bar { display: inline-block; height: 0.7em; background: var(--bar); }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
ul.problems { color: #b2182b; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""

Cell = str | int | float


def save_page(report: InspectReport, path: Path) -> None:
    """Write the page to ``path``; raises ``OutputError`` where that fails."""
    text = render_page(report)
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def render_page(report: InspectReport) -> str:
    """The page as text. Everything that comes from files is escaped."""
    title = _escape(f"{report.source}: {report.model_type}")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(_sections(report))
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _escape(text: str) -> str:
    return html.escape(shown(text))


def _sections(report: InspectReport) -> Iterator[str]:
    yield _table("overview", ("what", "value"), list(_facts(report)), sortable=False)
    yield _list("Problems", "problems", [problem.message for problem in report.problems])
    yield _list("Notes", "notes", report.notes)
    for number, svg in enumerate(figures(report), 1):
        yield f'<figure id="figure-{number}">{svg}</figure>'
    if report.routing is not None:
        yield "<h2>Routing, layer by layer</h2>"
        yield _layer_table(report)
        if otherwise := report.routing.get("otherwise"):
            yield "<h2>Loss if tokens were routed otherwise</h2>"
            rows = [(name, rule["loss"], rule["change"]) for name, rule in losses_by_routing(otherwise)]
            yield _table("otherwise", ("routing", "loss", "change"), [("learned", otherwise["learned"], 0.0), *rows])
        yield "<h2>Routing, expert by expert</h2>"
        yield _expert_table(report)
    if any("vocabulary" in layer.routing for layer in report.layers):
        yield "<h2>Tokens that experts see most</h2>"
        yield _vocabulary_table(report)
    if any(layer.weights for layer in report.layers):
        yield "<h2>Weights</h2>"
        yield _weight_table(report)
    yield "<h2>Parts</h2>"
    parts = [(name.replace("_", " "), part["parameters"], part["bytes"]) for name, part in report.parts.items()]
    yield _table("parts", ("part", "parameters", "bytes"), parts)


def _facts(report: InspectReport) -> Iterator[tuple[str, Cell]]:
    yield "class", report.architecture or "-"
    yield "layers", f"{report.num_layers}, of which {len(report.moe_layers)} are mixtures"
    yield "experts", f"{report.num_experts}, top-{report.top_k}"
    yield "parameters", f"{report.params_total or 0:,} total, {report.params_active or 0:,} active"
    yield "bytes", f"{report.bytes:,} in {len(report.shards)} files"
    if report.routing is not None:
        yield ("text", f"{report.routing['tokens']:,} tokens of {report.routing['documents']:,} texts")


def _layer_table(report: InspectReport) -> str:
    keys = ("max_violation", "load_cv", "load_entropy", "entropy", "margin")
    rows: list[tuple[Cell, ...]] = []
    nulls = report.router is not None and report.router.null_experts > 0
    for layer in report.layers:
        figure = layer.routing
        row: tuple[Cell, ...] = (layer.layer, *(figure[key] for key in keys), len(figure["dead"]))
        row += (figure["experts_per_token"],) if nulls else ()
        if "domains" in figure:
            row = (*row, figure["domains"]["nmi"])
        if "against" in figure:
            row = (*row, figure["against"]["saturation"])
        rows.append(row)
    heads = ["layer", "MaxVio", "CV", "load entropy", "router entropy", "margin", "dead"]
    heads += ["experts a token"] if nulls else []
    heads += ["NMI"] if report.domain_names else []
    heads += ["same as other"] if "against" in (report.routing or {}) else []
    return _table("layers", heads, rows)


def _expert_table(report: InspectReport) -> str:
    rows = [
        (
            layer.layer,
            expert,
            load,
            layer.routing["gate_mass"][expert],
            *(row[expert] for row in _by_domain(layer.routing)),
        )
        for layer in report.layers
        for expert, load in enumerate(layer.routing["load"])
    ]
    heads = ("layer", "expert", "load", "gate mass", *report.domain_names)
    return _table("experts", heads, rows, bars=(2,))


def _by_domain(routing: dict[str, Any]) -> list[tuple[float, ...]]:
    """Specialisation turned round: a row for each domain."""
    found = routing.get("domains")
    return [] if found is None else list(zip(*found["specialization"], strict=True))


def _vocabulary_table(report: InspectReport) -> str:
    rows = [
        (layer.layer, expert, ", ".join(f"{t['token']!r} {t['fraction']:.0%}" for t in tokens))
        for layer in report.layers
        for expert, tokens in enumerate(layer.routing["vocabulary"])
    ]
    return _table("vocabulary", ("layer", "expert", "tokens and how many visit it"), rows)


def _weight_table(report: InspectReport) -> str:
    keys = ("router_norm", "router_cosine", "expert_distance", "dense_distance")
    rows = [
        (
            layer.layer,
            *((layer.weights.get(key) or {}).get("mean", "-") for key in keys),
            sum(len(group) - 1 for group in layer.weights["duplicates"]),
            layer.weights["nonfinite"],
        )
        for layer in report.layers
    ]
    heads = ("layer", "router norm", "router cosine", "expert distance", "from dense", "duplicates", "NaN, inf")
    return _table("weights", heads, rows)


def _table(
    name: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    sortable: bool = True,
    bars: tuple[int, ...] = (),
) -> str:
    widest = {place: max((float(row[place]) for row in rows), default=1) or 1 for place in bars}
    first = rows[0] if rows else heads
    head = "".join(_head(text, value, sortable) for text, value in zip(heads, first, strict=True))
    body = "\n".join(
        "<tr>" + "".join(_cell(value, widest.get(place)) for place, value in enumerate(row)) + "</tr>" for row in rows
    )
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table id="{name}"{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _head(text: str, below: Cell, sortable: bool) -> str:
    """A heading, aligned like what stands below it."""
    kind = ' class="words"' if isinstance(below, str) else ""
    inner = f"<button>{_escape(text)}</button>" if sortable else _escape(text)
    return f'<th scope="col"{kind}>{inner}</th>'


def _cell(value: Cell, widest: float | None) -> str:
    if isinstance(value, str):
        return f'<td class="words">{_escape(value)}</td>'
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    bar = ""
    if widest is not None:
        bar = f' <span class="bar" style="width:{6 * value / widest:.2f}rem"></span>'
    return f'<td data-value="{value!r}">{shown}{bar}</td>'


def _list(title: str, name: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    listed = "".join(f"<li>{_escape(item)}</li>" for item in items)
    return f'<h2>{title}</h2><ul class="{name}">{listed}</ul>'
