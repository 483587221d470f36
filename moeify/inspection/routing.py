"""Where a mixture sends the tokens of real text, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source, resolve_source
from moeify.errors import DatasetError, RoutingError
from moeify.families.mixture import Mixture
from moeify.families.moe_layout import MoeLayout
from moeify.families.problems import Problem, numbers
from moeify.families.registry import moe_layout, vocabulary_size
from moeify.inspection.config import InspectConfig
from moeify.inspection.other_routing import loss_of, other_losses
from moeify.inspection.report import InspectReport
from moeify.inspection.token_routes import FirstTexts, TokenRoutes
from moeify.inspection.vocabulary import VocabularyCounts
from moeify.routing.collection import Observer, RoutedTokens, collect
from moeify.routing.data import Blocks, block_length, blocks_for, check_vocabulary, padding_token, tokenizer_for
from moeify.routing.passes import passes_over
from moeify.routing.statistics import DomainFigures, LayerRouting, RoutingStatistics

_MATRIX_EXPERTS = 64  # up to which the document holds whole co-activation matrices
_PAIRS = 10


class Choices:
    """Which experts every token visits: an observer that remembers, or compares with what was.

    T x K numbers of two bytes for each layer.
    """

    def __init__(self, earlier: Choices | None = None) -> None:
        self.earlier = earlier
        self._parts: dict[int, list[NDArray[np.uint16]]] = {}
        self._same: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def __call__(self, tokens: RoutedTokens) -> None:
        experts = tokens.experts.numpy().astype(np.uint16)
        layer, start = tokens.layer, self._seen.get(tokens.layer, 0)
        self._seen[layer] = start + len(experts)
        if self.earlier is None:
            self._parts.setdefault(layer, []).append(experts)
            return
        before = self.earlier.of(layer)[start : start + len(experts)]
        same = (experts[:, :, None] == before[:, None, :]).any(-1)
        self._same[layer] = self._same.get(layer, 0) + int(same.sum())

    def of(self, layer: int) -> NDArray[np.uint16]:
        """The experts [T, K] of one layer."""
        parts = self._parts[layer]
        if len(parts) > 1:
            self._parts[layer] = parts = [np.concatenate(parts)]
        return parts[0]

    def saturation(self, layer: int, top_k: int) -> float:
        """Mean of |experts now and then| / K (OLMoE, arXiv 2409.02060, section 5.1)."""
        return self._same.get(layer, 0) / max(self._seen.get(layer, 0) * top_k, 1)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The observers of one checkpoint's pass over the text; ``shown`` sees the texts that stand in front of it."""

    statistics: RoutingStatistics
    shown: TokenRoutes | None = None
    choices: Choices | None = None
    vocabulary: VocabularyCounts | None = None

    def __call__(self, tokens: RoutedTokens) -> None:
        rest = tokens if self.shown is None else self.shown(tokens)
        for observer in (self.statistics, self.choices, self.vocabulary):
            if observer is not None and rest is not None:
                observer(rest)


def examine_routing(source: Source, mixture: Mixture, report: InspectReport, config: InspectConfig) -> None:
    """Route the text that ``config`` names and add what came of it to ``report``.

    Raises ``MoeifyError`` where the text cannot be read or the checkpoint cannot run.
    """
    layout = mixture.layout
    if config.dataset is None:
        _examine_text(source, layout, report, config)
        return
    checkpoint = Checkpoint.open(source.folder)
    other = None if config.against is None else _other(config, report)
    if asks_otherwise := bool(config.routing or config.capacity_factor):
        loss_of(checkpoint.config)
    texts = FirstTexts()
    blocks, tokenizer = blocks_for(checkpoint, config.data, config.max_tokens, texts if config.tokens else None)
    if config.text is not None:
        texts(config.text, None)
    if other is not None:
        known = vocabulary_size(Checkpoint.open(other[0].folder).config)
        check_vocabulary(tokenizer, blocks.largest_token, known)
    report.notes += blocks.notes
    run = _Run(
        statistics=RoutingStatistics(len(blocks.domain_names)),
        shown=_shown(texts, tokenizer, blocks.seq_len, checkpoint, report),
        choices=None if other is None else Choices(),
        vocabulary=VocabularyCounts(blocks) if config.vocabulary else None,
    )
    padding = padding_token(tokenizer, vocabulary_size(checkpoint.config))
    all_blocks = blocks if run.shown is None else run.shown.in_front_of(blocks, padding)
    _route(source, layout, all_blocks, run, config)
    add_routing(report, blocks, run.statistics)
    if run.vocabulary is not None:
        for layer in report.layers:
            layer.routing["vocabulary"] = run.vocabulary.figures(layer.layer, tokenizer)
    _flag_collapse(report)
    if asks_otherwise and report.routing is not None:
        report.routing["otherwise"] = other_losses(checkpoint, mixture, blocks, tokenizer, config)
    if other is not None:
        _compare(other, blocks, run, report, config)


def add_routing(report: InspectReport, blocks: Blocks, statistics: RoutingStatistics) -> None:
    """Add what ``statistics`` say of ``blocks`` to ``report`` and its layers."""
    for layer in report.layers:
        layer.routing = _layer_figures(statistics.layers[layer.layer])
    report.routing = _routing(blocks, statistics)
    report.sums = statistics.layers
    report.domain_names = blocks.domain_names


def _examine_text(source: Source, layout: MoeLayout, report: InspectReport, config: InspectConfig) -> None:
    """Show where one text's tokens go, which are too few for statistics."""
    checkpoint = Checkpoint.open(source.folder)
    tokenizer, texts = tokenizer_for(source.folder), FirstTexts()
    texts(str(config.text), None)
    shown = _shown(texts, tokenizer, block_length(checkpoint.config, config.seq_len), checkpoint, report)
    if shown is None:
        raise DatasetError("the tokenizer makes no tokens of the text", "pass a text that holds words")
    known = vocabulary_size(checkpoint.config)
    blocks = shown.in_front_of(None, padding_token(tokenizer, known))
    check_vocabulary(tokenizer, blocks.largest_token, known)
    _route(source, layout, blocks, shown, config)


def _shown(
    texts: FirstTexts, tokenizer: Any, seq_len: int, checkpoint: Checkpoint, report: InspectReport
) -> TokenRoutes | None:
    """What will hold where tokens of ``texts`` go; None where there are none."""
    passages = texts.passages(tokenizer, seq_len)
    if not passages:
        return None
    report.tokens = TokenRoutes(passages, report.expert_labels)
    return report.tokens


def _route(source: Source, layout: MoeLayout, blocks: Blocks, run: Observer, config: InspectConfig) -> None:
    with passes_over(Checkpoint.open(source.folder), layout, low_memory=config.low_memory) as passes:
        collect(passes, layout, blocks, run, batch_size=config.batch, name=f"routing through {source.name}")


def _other(config: InspectConfig, report: InspectReport) -> tuple[Source, MoeLayout]:
    """The checkpoint to compare with; raises ``RoutingError`` where layers or experts differ."""
    source = resolve_source(str(config.against))
    checkpoint = Checkpoint.open(source.folder)
    layout = moe_layout(checkpoint.config, checkpoint.tensors)
    for what, here, there in (
        ("MoE layers", len(report.moe_layers), len(layout.moe_layers(checkpoint.config))),
        ("experts", report.num_experts, layout.num_experts(checkpoint.config)),
        ("experts per token", report.top_k, layout.top_k(checkpoint.config)),
        ("slices", report.router.slices if report.router else 1, layout.rule.slices(checkpoint.config)),
    ):
        if here != there:
            raise RoutingError(
                f"{source.name} has {there} {what} and {report.source} {here}: their routing cannot be compared",
                "name another state of the same mixture",
            )
    return source, layout


def _compare(
    other: tuple[Source, MoeLayout], blocks: Blocks, run: _Run, report: InspectReport, config: InspectConfig
) -> None:
    source, layout = other
    choices = Choices(run.choices)
    there = _Run(statistics=RoutingStatistics(len(blocks.domain_names)), choices=choices)
    _route(source, layout, blocks, there, config)
    for layer in report.layers:
        sums = there.statistics.layers[layer.layer]
        layer.routing["against"] = {
            "saturation": _round(choices.saturation(layer.layer, sums.top_k)),
            "max_violation": _round(sums.max_violation),
            "entropy": _round(sums.entropy),
            "dead": list(sums.dead),
        }
    shares = [layer.routing["against"]["saturation"] for layer in report.layers]
    baseline = (report.top_k or 0) / max(report.num_experts or 1, 1)
    if report.routing is not None:
        report.routing["against"] = {
            "source": source.name,
            "saturation": _round(sum(shares) / max(len(shares), 1)),
            "baseline": _round(baseline),
        }


def _layer_figures(sums: LayerRouting) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "load": _list(sums.load),
        "utilization": _list(sums.utilization),
        "gate_mass": _list(sums.gate_mass_fraction),
        "max_violation": _round(sums.max_violation),
        "load_cv": _round(sums.load_cv),
        "load_entropy": _round(sums.load_entropy),
        "entropy": _round(sums.entropy),
        "margin": _round(sums.margin),
        "dead": list(sums.dead),
        "unused": list(sums.unused),
        "collapsed": sums.collapsed,
        "experts_per_token": _round(sums.experts_per_token),
    }
    domains = sums.domains
    return figures if domains is None else figures | {"domains": _domain_figures(domains)}


def _domain_figures(domains: DomainFigures) -> dict[str, Any]:
    return {
        "specialization": [_list(row) for row in domains.specialization],
        "nmi": _round(domains.nmi),
        "own_domain": list(domains.own_domain),
        # An expert that no other domain uses is enriched without bound, which JSON cannot say.
        "enrichment": [_round(v) if np.isfinite(v) else None for v in domains.enrichment],
    }


def _routing(blocks: Blocks, statistics: RoutingStatistics) -> dict[str, Any]:
    layers = statistics.layers
    found: dict[str, Any] = {
        "tokens": statistics.tokens,
        "documents": blocks.documents,
        "seq_len": blocks.seq_len,
        "max_violation": _round(statistics.max_violation),
        "entropy": _round(statistics.entropy),
        "dead": sum(len(layer.dead) for layer in layers.values()),
        "experts_per_token": _round(statistics.experts_per_token),
        "coactivation": {str(n): _coactivation(layer) for n, layer in sorted(layers.items())},
        "domains": None,
    }
    if blocks.domain_names:
        first = next(iter(layers.values()))
        found["domains"] = {
            "names": list(blocks.domain_names),
            "tokens": [int(count) for count in first.tokens_per_domain],
            "baseline": _round(first.experts_per_token / first.num_experts),
            "nmi": _round(_mean([layer.domains.nmi for layer in layers.values() if layer.domains is not None])),
        }
    return found


def _coactivation(sums: LayerRouting) -> dict[str, Any]:
    """The pairs that meet most often, and all of them where there are few experts."""
    matrix = sums.coactivation
    experts = sums.num_experts
    upper = [(i, j) for i in range(experts) for j in range(experts) if i != j]
    upper.sort(key=lambda pair: (-matrix[pair], pair))
    found: dict[str, Any] = {
        "baseline": _round(float(sums.coactivation_by_chance.max())),
        "top": [
            {"expert": i, "with": j, "fraction": _round(float(matrix[i, j]))}
            for i, j in upper[:_PAIRS]
            if matrix[i, j] > 0
        ],
    }
    if experts <= _MATRIX_EXPERTS:
        found["matrix"] = [_list(row) for row in matrix]
    return found


def _flag_collapse(report: InspectReport) -> None:
    collapsed = [layer.layer for layer in report.layers if layer.routing["collapsed"]]
    if collapsed:
        report.problems.append(
            Problem(
                kind="collapsed_routing",
                message=f"{numbers(collapsed, 'layer')}: nearly all tokens go to the same"
                f" {report.top_k} of {report.num_experts} experts",
            )
        )


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _list(values: NDArray[np.float64]) -> list[float]:
    return [_round(float(value)) for value in values]


def _round(value: float) -> float:
    """Eight significant digits: what is left does not depend on the number of threads."""
    return float(f"{value:.8g}")
