"""The tables of ``moeify inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.cli._output import Output
from moeify.cli._routing_tables import show_routing
from moeify.cli._text import bar, count, size
from moeify.cli._token_lines import show_tokens

if TYPE_CHECKING:
    from moeify.inspection.report import InspectReport, LayerReport, RouterFacts

_LONG = 16
_SHOWN_PROBLEMS = 40
_PART_NAMES = {
    "experts": "experts",
    "shared_experts": "shared experts",
    "null_experts": "null experts",
    "dense_ffn": "dense FFNs",
    "heads": "heads",
    "towers": "other modalities",
    "quantization": "quantisation scales",
    "ignored": "left out on loading",
    "buffers": "buffers",
    "guard": "stops dense classes",
    "unknown": "unknown",
}


def show(out: Output, report: InspectReport, layers: str | None) -> None:
    """Everything that a report holds, for people."""
    out.table(f"{report.source}{_at(report.revision)}", list(_facts(report)))
    if report.parts:
        _show_parts(out, report)
    if report.upcycled is not None:
        _show_outlook(out, report)
    shown = _chosen(report, layers)
    if report.layers and report.layers[0].weights:
        _show_weights(out, report, shown)
    if report.routing is not None:
        show_routing(out, report, shown, detailed=layers is not None)
    if report.tokens is not None:
        show_tokens(out, report.tokens, [report.telling] if layers is None else shown or ())
    if shown is None and layers is None and _deep(report) and len(report.layers) > _LONG:
        out.hint(f"--all shows all {len(report.layers)} layers, --layers 0,2,4-7 some of them")
    out.lines("notes", report.notes)
    found = [problem.message for problem in report.problems]
    rest = len(found) - _SHOWN_PROBLEMS
    tail = [f"and {rest} more; --json lists them all"] if rest > 0 else []
    out.lines(f"problems ({len(found)})", [*found[:_SHOWN_PROBLEMS], *tail])


def _deep(report: InspectReport) -> bool:
    return any(layer.weights or layer.routing for layer in report.layers)


def _at(revision: object) -> str:
    return f" at {str(revision)[:12]}" if revision else ""


def _facts(report: InspectReport) -> list[tuple[str, str]]:
    kind = {"moe": "mixture of experts", "dense": "dense"}.get(report.kind, "not known to moeify")
    named = [name for name in (report.model_type, report.architecture) if name]
    rows = [("model", ", ".join([*named, kind]))]
    if report.num_layers is not None:
        rows.append(("layers", _layers(report)))
    if report.num_experts is not None:
        shared = f", {report.num_shared_experts} shared" if report.num_shared_experts else ""
        width = f" of {report.ffn_size} neurons" if report.ffn_size is not None else ""
        rows.append(("experts", f"{report.num_experts}{width}, top-{report.top_k or '?'}{shared}"))
    if report.router is not None:
        rows.append(("routing", _routing(report.router)))
    if report.params_total is not None:
        rows.append(("parameters", _parameters(report)))
    dtypes = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in report.dtypes.items())
    one = next(iter(report.dtypes), "")
    rows.append(("bytes", f"{size(report.bytes)} in {_files(len(report.shards))}, {report.num_tensors:,} tensors"))
    rows.append(("dtypes", one if len(report.dtypes) == 1 else dtypes))
    if report.running is not None:
        costs = report.running
        weights = f"{size(costs.bfloat16)} in bf16, {size(costs.int8)} in int8, {size(costs.nf4)} in nf4"
        cache = "" if costs.kv_cache is None else f"{size(costs.kv_cache)} for a thousand tokens, in bf16"
        rows += [("to run it", weights), ("cache", cache)]
    if report.tied_embeddings is not None:
        rows.append(("embeddings", "tied" if report.tied_embeddings else "untied"))
    if report.provenance is not None:
        steps = ", ".join(step.command for step in report.provenance.steps) or "no steps recorded"
        origin = f"{report.provenance.source}{_at(report.provenance.revision)}"
        rows.append(("made by", f"moeify from {origin}: {steps}"))
    if report.verified is not None:
        sound = f"{_files(report.verified.files)}, {size(report.verified.bytes)}"
        rows.append(("verified", f"{sound}: as they were written"))
    return rows


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _layers(report: InspectReport) -> str:
    if report.kind != "moe":
        return str(report.num_layers)
    mixtures = len(report.moe_layers)
    if mixtures == report.num_layers:
        return f"{report.num_layers}, every one a mixture"
    from moeify.families.problems import numbers

    return f"{report.num_layers}, mixtures in {mixtures}: {numbers(report.moe_layers)}"


def _routing(router: RouterFacts) -> str:
    parts = [f"by {router.route_by}", router.scores]
    if router.selection_bias:
        parts.append("bias for choosing")
    if router.slices > 1 and not router.tied:
        parts.append(f"in each of {router.slices} slices")
    if router.null_experts:
        parts.append(f"the first an expert, then {router.null_experts} null experts too")
    if router.groups is not None:
        which = f"copies, groups of {router.slices} experts" if router.tied else "groups"
        parts.append(f"best {router.groups[1]} of {router.groups[0]} {which}")
    parts.append("weights renormalised" if router.renormalised else "weights as they are")
    if router.scaling != 1:
        parts.append(f"scaled by {router.scaling:g}")
    return ", ".join(parts)


def _parameters(report: InspectReport) -> str:
    total, active = report.params_total or 0, report.params_active
    if active is None or report.kind != "moe" or not total:
        return f"{count(total)} ({total:,})"
    return f"{count(total)} total ({total:,}), {count(active)} active ({active / total:.1%})"


def _show_parts(out: Output, report: InspectReport) -> None:
    whole = max(report.bytes, 1)
    rows = [
        (
            _PART_NAMES.get(name, name),
            count(part["parameters"]),
            size(part["bytes"]),
            f"{part['bytes'] / whole:.1%}",
            bar(part["bytes"] / whole).ljust(12),
        )
        for name, part in report.parts.items()
    ]
    out.grid("parts", ("part", "parameters", "bytes", "share", ""), rows)


def _show_outlook(out: Output, report: InspectReport) -> None:
    outlook = report.upcycled
    if outlook is None:
        return
    rows = [(role, str(tensor["name"]), " x ".join(map(str, tensor["shape"]))) for role, tensor in outlook.ffn.items()]
    out.grid("FFN of a layer", ("role", "tensor", "shape"), rows, left=2)
    text = (
        f"{outlook.model_type} with {outlook.num_experts} experts, top-{outlook.top_k}:"
        f" {count(outlook.params_total)} total, {count(outlook.params_active)} active,"
        f" {size(outlook.nbytes)}"
    )
    out.lines("moeify upcycle would make", [text])
    out.hint(f"moeify upcycle {report.source} --experts {outlook.num_experts} --top-k {outlook.top_k}")


def _chosen(report: InspectReport, layers: str | None) -> list[LayerReport] | None:
    """The layers to show one by one; None for a summary."""
    if layers is None:
        return report.layers if len(report.layers) <= _LONG else None
    from moeify.upcycling.layers import select_layers

    wanted = select_layers(layers, report.num_layers or 1)
    return [layer for layer in report.layers if layer.layer in wanted]


def _show_weights(out: Output, report: InspectReport, shown: list[LayerReport] | None) -> None:
    rows = [_weight_row(str(layer.layer), [layer]) for layer in shown or ()]
    if shown is None or len(shown) > 1:
        rows.append(_weight_row("all", report.layers))
    headings = ["layer", "router norm", "cosine", "distance", "duplicates", "NaN, inf"]
    if any("dense_distance" in layer.weights for layer in report.layers):
        headings.insert(4, "from dense")
    else:
        rows = [(*row[:4], *row[5:]) for row in rows]
    out.grid("weights", headings, rows)


def _weight_row(name: str, layers: list[LayerReport]) -> tuple[str, ...]:
    values = [layer.weights for layer in layers]

    def mean(key: str) -> str:
        known = [value[key]["mean"] for value in values if value.get(key)]
        return f"{sum(known) / len(known):.3g}" if known else "-"

    copies = sum(len(group) - 1 for value in values for group in value["duplicates"])
    return (
        name,
        mean("router_norm"),
        mean("router_cosine"),
        mean("expert_distance"),
        mean("dense_distance"),
        str(copies or "-"),
        str(sum(value["nonfinite"] for value in values) or "-"),
    )
