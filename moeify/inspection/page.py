"""A report as one HTML page: tables that sort, figures inside, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from moeify.checkpoint.replacing import replacing
from moeify.errors import OutputError
from moeify.inspection.page_layers import layer_section, layer_style
from moeify.inspection.plots import figures
from moeify.inspection.report import InspectReport
from moeify.inspection.shown import escaped, losses_by_routing

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
    title = escaped(f"{report.source}: {report.model_type}")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_file('page.css')}{layer_style(report)}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(_sections(report))
        + f"\n<script>{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return files("moeify.inspection").joinpath(name).read_text(encoding="utf-8")


def _sections(report: InspectReport) -> Iterator[str]:
    yield _table("overview", ("what", "value"), list(_facts(report)), sortable=False)
    yield _list("Problems", "problems", [problem.message for problem in report.problems])
    yield _list("Notes", "notes", report.notes)
    for number, svg in enumerate(figures(report), 1):
        yield f'<figure id="figure-{number}">{svg}</figure>'
    if report.routing is not None:
        yield "<h2>Routing</h2>"
        yield '<p class="note">Choose a layer to see its experts below.</p>'
        yield _layer_table(report)
        if otherwise := report.routing.get("otherwise"):
            yield "<h2>Loss if tokens were routed otherwise</h2>"
            yield _table("otherwise", ("routing", "loss", "change", "its standard error"), list(_otherwise(otherwise)))
    yield layer_section(report)
    if any(layer.weights for layer in report.layers):
        yield "<h2>Weights</h2>"
        yield _weight_table(report)
    yield "<h2>Parts</h2>"
    parts = [(name.replace("_", " "), part["parameters"], part["bytes"]) for name, part in report.parts.items()]
    yield _table("parts", ("part", "parameters", "bytes"), parts)


def _otherwise(found: dict[str, Any]) -> Iterator[tuple[Cell, ...]]:
    yield "as the routers say", found["learned"], 0.0, 0.0
    for name, rule in losses_by_routing(found):
        error = rule["change_error"]
        yield name, rule["loss"], rule["change"], "-" if error is None else error


def _facts(report: InspectReport) -> Iterator[tuple[str, Cell]]:
    yield "class", report.architecture or "-"
    yield "layers", f"{report.num_layers}, of which {len(report.moe_layers)} are mixtures"
    yield "experts", _experts(report)
    yield "parameters", f"{report.params_total or 0:,} total, {report.params_active or 0:,} active"
    yield "bytes", f"{report.bytes:,} in {len(report.shards)} files"
    if report.routing is not None:
        yield ("text", f"{report.routing['tokens']:,} tokens of {report.routing['documents']:,} texts")


def _experts(report: InspectReport) -> str:
    parts, router = [f"{report.num_experts}, top-{report.top_k}"], report.router
    if router is not None and router.slices > 1:
        parts.append(f"in {router.slices} slices")
    if router is not None and router.null_experts:
        parts.append(f"{router.null_experts} null ones beside them")
    return ", ".join(parts)


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


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = True) -> str:
    first = rows[0] if rows else heads
    head = "".join(_head(text, value, sortable) for text, value in zip(heads, first, strict=True))
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table id="{name}"{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _head(text: str, below: Cell, sortable: bool) -> str:
    """A heading, aligned like what stands below it."""
    kind = ' class="words"' if isinstance(below, str) else ""
    inner = f"<button>{escaped(text)}</button>" if sortable else escaped(text)
    return f'<th scope="col"{kind}>{inner}</th>'


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return f'<td class="words">{escaped(value)}</td>'
    return f'<td data-value="{value!r}">{f"{value:,}" if isinstance(value, int) else f"{value:.4g}"}</td>'


def _list(title: str, name: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    listed = "".join(f"<li>{escaped(item)}</li>" for item in items)
    return f'<h2>{title}</h2><ul class="{name}">{listed}</ul>'
