"""Layers for predicting further tokens (multi-token prediction): which of their experts stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moeify.checkpoint.naming import some
from moeify.families.mixture import Mixture
from moeify.families.problems import numbers
from moeify.pruning.config import PruneConfig, parse_experts
from moeify.pruning.criteria import CRITERIA, Criterion
from moeify.pruning.scoring import expert_scores
from moeify.pruning.selection import further_layers, goes_further, select


def chosen_without_text(
    mixture: Mixture, config: PruneConfig, keep: int, layers: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """The ``keep`` experts of each of ``layers`` that stay: text does not run through these."""
    if not layers:
        return {}
    by = _stand_in(mixture, config)
    scores = expert_scores(by, mixture, None, config.seed, layers=layers)
    return select(mixture, scores, keep, high_goes_first=by.high_goes_first)


def _stand_in(mixture: Mixture, config: PruneConfig) -> Criterion:
    """The criterion asked for, or one that takes no text: the one of weights, where these can be read."""
    if config.drop is None and not CRITERIA[config.criterion].reads_text:
        return CRITERIA[config.criterion]
    return CRITERIA["aimer" if mixture.quantised is None else "random"]


def said_of_further(mixture: Mixture, config: PruneConfig) -> Iterator[str]:
    """What became of such layers, where that is not what was asked for."""
    if not mixture.extra or not config.mtp:
        return
    if not goes_further(mixture, config):
        why = "no dense class has them" if config.dense else "they have other numbers of experts"
        named = some(sorted(mixture.extra))
        yield f"left out {len(mixture.extra)} tensors of layers for predicting further tokens ({why}): {named}"
    elif layers := _unnamed(further_layers(mixture, config), config):
        yield (
            f"no text runs through {numbers(layers, 'layer')}, for further tokens: experts were chosen by"
            f" {_stand_in(mixture, config).name} there; --no-mtp leaves such layers out"
        )


def _unnamed(layers: tuple[int, ...], config: PruneConfig) -> tuple[int, ...]:
    """Those of ``layers`` whose experts were chosen neither by hand nor by the criterion asked for."""
    if config.drop is None:
        return layers if CRITERIA[config.criterion].reads_text else ()
    named = parse_experts(config.drop)
    return () if None in named else tuple(layer for layer in layers if layer not in named)
