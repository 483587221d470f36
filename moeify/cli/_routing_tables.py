"""The tables of ``moeify inspect --dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moeify.cli._output import Output
from moeify.cli._text import loss, spark
from moeify.inspection.shown import losses_by_routing

if TYPE_CHECKING:
    from moeify.inspection.report import InspectReport, LayerReport

_SPARK_EXPERTS = 32
_DOMAIN_EXPERTS = 12
_WORST = 4


def show_routing(out: Output, report: InspectReport, shown: Sequence[LayerReport] | None, *, detailed: bool) -> None:
    """Load and decision of each layer, domains, co-activation, vocabulary, comparison.

    Domains and vocabulary of one layer only, unless layers are asked for: ``detailed``.
    """
    routing = report.routing or {}
    title = f"routing of {routing['tokens']:,} tokens ({routing['documents']:,} texts)"
    if shown is None:
        title += f", the {_WORST} least even of {len(report.layers)} layers"
    listed = _worst(report) if shown is None else shown
    rows = [_row(str(layer.layer), [layer]) for layer in listed]
    if shown is None or len(rows) > 1:
        rows.append(_row("all", report.layers))
    headings = ["layer", "load", "MaxVio", "CV", "dead", "entropy", "margin", "busiest"]
    if report.router is not None and report.router.null_experts:
        headings.append("experts a token")
        every = [[layer] for layer in listed] + [report.layers] * (len(rows) - len(listed))
        rows = [(*row, f"{_visited(layers):.2f}") for row, layers in zip(rows, every, strict=True)]
    if routing.get("against"):
        headings.append("same")
        rows = [(*row, same) for row, same in zip(rows, _same(report, listed, len(rows)), strict=True)]
    out.grid(title, headings, rows, left=2)
    _explain(out, report)
    layers = list(shown or ()) if detailed else [report.telling]
    if routing.get("domains"):
        _show_domains(out, report, layers)
    _show_coactivation(out, report, layers if shown is None else shown)
    if routing.get("otherwise"):
        _show_otherwise(out, routing["otherwise"])
    for layer in layers:
        if "vocabulary" in layer.routing:
            _show_vocabulary(out, layer)


def _worst(report: InspectReport) -> list[LayerReport]:
    """The least even layers of a long model, in their order."""
    ranked = sorted(report.layers, key=lambda layer: -float(layer.routing["max_violation"]))
    return sorted(ranked[:_WORST], key=lambda layer: layer.layer)


def _row(name: str, layers: Sequence[LayerReport]) -> tuple[str, ...]:
    values = [layer.routing for layer in layers]
    load = spark(values[0]["utilization"][:_SPARK_EXPERTS]) if len(values) == 1 else "mean"

    def mean(key: str) -> float:
        return float(sum(value[key] for value in values) / max(len(values), 1))

    busiest = max(max(value["load"]) for value in values)
    return (
        name,
        load,
        f"{mean('max_violation'):.2f}",
        f"{mean('load_cv'):.2f}",
        str(sum(len(value["dead"]) for value in values) or "-"),
        f"{mean('entropy'):.2f}",
        f"{mean('margin'):.2f}",
        f"{busiest:.1%}",
    )


def _visited(layers: Sequence[LayerReport]) -> float:
    """Experts that a token visits on average, without null ones."""
    return float(sum(layer.routing["experts_per_token"] for layer in layers) / max(len(layers), 1))


def _same(report: InspectReport, listed: Sequence[LayerReport], count: int) -> list[str]:
    found = [layer.routing["against"]["saturation"] for layer in listed]
    whole = (report.routing or {})["against"]["saturation"]
    return [f"{fraction:.1%}" for fraction in [*found, whole][:count]]


def _explain(out: Output, report: InspectReport) -> None:
    experts, top_k = report.num_experts or 1, report.top_k or 1
    lines = [
        f"even: load {1 / experts:.1%} each, MaxVio 0; collapsed: MaxVio {experts / top_k - 1:g}",
        "dead: under a tenth of the even load; entropy: 1 undecided, 0 certain",
    ]
    against = (report.routing or {}).get("against")
    if against:
        lines.append(
            f"same: of a token's experts, those it also visits in {against['source']}; by chance"
            f" {against['baseline']:.1%}"
        )
    out.lines("how to read this", lines)


def _show_domains(out: Output, report: InspectReport, layers: Sequence[LayerReport]) -> None:
    domains: dict[str, Any] = (report.routing or {})["domains"]
    names, baseline = domains["names"], domains["baseline"]
    for layer in layers:
        figures = layer.routing["domains"]
        order = sorted(range(len(figures["own_domain"])), key=lambda e: -(figures["enrichment"][e] or float("inf")))
        rows = [
            (
                str(expert),
                *(f"{share:.0%}" for share in figures["specialization"][expert]),
                names[figures["own_domain"][expert]],
                "only" if figures["enrichment"][expert] is None else f"{figures['enrichment'][expert]:.1f}x",
            )
            for expert in order[:_DOMAIN_EXPERTS]
        ]
        title = (
            f"domains, layer {layer.layer}: part of a domain's tokens that visit an expert"
            f" (evenly {baseline:.0%}), NMI {figures['nmi']:.3f}"
        )
        out.grid(title, ("expert", *names, "most", "enriched"), rows)


def _show_coactivation(out: Output, report: InspectReport, layers: Sequence[LayerReport]) -> None:
    found: dict[str, Any] = (report.routing or {})["coactivation"]
    if (report.top_k or 1) < 2:
        return
    rows = []
    for layer in layers:
        pairs = found[str(layer.layer)]
        listing = ", ".join(f"{pair['expert']}+{pair['with']} {pair['fraction']:.0%}" for pair in pairs["top"][:5])
        rows.append((str(layer.layer), listing, f"{pairs['baseline']:.0%}"))
    title = "experts that meet: of the first one's tokens, those that also visit the second"
    out.grid(title, ("layer", "pairs", "by chance"), rows, left=2)


def _show_otherwise(out: Output, found: dict[str, Any]) -> None:
    rows = [("as the routers say", loss(found["learned"], found["learned_error"]), "")]
    for name, rule in losses_by_routing(found):
        rows.append((name, f"{rule['loss']:#.5g}", loss(rule["change"], rule["change_error"])))
    out.grid("loss if tokens were routed otherwise", ("routing", "loss", "change"), rows)


def _show_vocabulary(out: Output, layer: LayerReport) -> None:
    rows = [
        (str(expert), "  ".join(f"{_quoted(t['token'])} {t['fraction']:.0%}" for t in tokens))
        for expert, tokens in enumerate(layer.routing["vocabulary"])
    ]
    title = f"tokens, layer {layer.layer}: those seen most, and how often they visit the expert"
    out.grid(title, ("expert", "tokens"), rows, left=2)


def _quoted(token: str) -> str:
    return repr(token) if token != token.strip() or not token.isprintable() else token
