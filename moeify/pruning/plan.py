"""The plan of a pruned checkpoint, made from headers and config alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeify.checkpoint.gather import neurons
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Job, Piece, copy_of, piece_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.slices import Slice, whole
from moeify.checkpoint.writer import plan_shards
from moeify.errors import ConfigError
from moeify.families.mixture import Mixture
from moeify.families.mixture_places import Place, Places
from moeify.families.values import Config, text_config

Kept = Mapping[int, tuple[int, ...]]
"""The experts that stay in each MoE layer, ascending, by their numbers in the source."""

_NEXT_TOKEN_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """Everything that will be written: config and files; parameters as stored, tied ones once."""

    config: Config
    files: PlannedFiles
    params_before: int
    params_after: int


def check_counts(mixture: Mixture, keep: int, what: str = "keep") -> None:
    """Raise ``ConfigError`` where ``keep`` experts a layer cannot work in this checkpoint."""
    total, top_k, tied = mixture.num_experts, mixture.top_k, mixture.numbering.tied
    groups = mixture.groups if tied == 1 else None
    if keep >= total:
        half = max(total // 2 // mixture.slices * mixture.slices, min(top_k, total))
        raise ConfigError(f"nothing to do: {what} {keep} of {total} experts", f"pass --keep {half}")
    if keep < top_k:
        raise ConfigError(
            f"each token visits {top_k} experts, which {what} {keep} would not leave",
            f"pass --keep {top_k} or more, or --dense to make a dense model of one expert",
        )
    if keep % mixture.slices:
        raise ConfigError(
            (f"a copy is a group of {tied} experts" if tied > 1 else f"experts lie in {mixture.slices} slices")
            + f" that must stay {'whole' if tied > 1 else 'equally large'}, so {what} {keep} must be a multiple of"
            f" {mixture.slices}",
            f"pass --keep {max(top_k, keep // mixture.slices * mixture.slices)}",
        )
    if groups is None:
        return
    count, chosen = groups
    if keep % count or keep // count < 2 or chosen * (keep // count) < top_k:
        raise ConfigError(
            f"the router keeps {chosen} of {count} groups of experts, so {what} {keep} must be a"
            f" multiple of {count} with at least 2 experts a group and {top_k} in {chosen} groups",
            f"pass --keep {_smallest(count, chosen, top_k)} or a larger multiple of {count}",
        )


def _smallest(count: int, chosen: int, top_k: int) -> int:
    return count * max(2, math.ceil(top_k / chosen))


def plan_prune(
    mixture: Mixture,
    kept: Kept,
    max_shard_bytes: int,
    blends: Mapping[tuple[str, int], Piece] | None = None,
    down_factors: Mapping[int, float] | None = None,
    *,
    further: bool = True,
) -> PrunePlan:
    """Plan the checkpoint in which every MoE layer has only its ``kept`` experts.

    Tensors for further tokens go along where ``further``; ``kept`` has experts of those that hold some.

    Every byte is a copy, except for ``blends``, pieces by tensor and expert that replace an
    expert's copy, and ``down_factors``, by which a layer's down projections are multiplied.
    """
    jobs: list[Job] = []
    routers: list[Job] = []
    for job, part in _jobs(mixture, kept, blends or {}, down_factors or {}, further):
        last = job.name in mixture.guards or (part is not None and part.kind == "router")
        (routers if last else jobs).append(job)
    counts = {len(experts) for experts in kept.values()}
    assert len(counts) == 1, "the format holds one number of experts for all layers"
    return PrunePlan(
        config=pruned_config(mixture, kept, further),
        files=PlannedFiles(shards=plan_shards(jobs, max_shard_bytes, last=routers)),
        params_before=mixture.stored_parameters(further),
        params_after=sum(math.prod(job.shape) for job in (*jobs, *routers)) - len(mixture.guards),
    )


def _jobs(
    mixture: Mixture,
    kept: Kept,
    blends: Mapping[tuple[str, int], Piece],
    down_factors: Mapping[int, float],
    further: bool,
) -> Iterator[tuple[Job, Place | None]]:
    places = {layer: {e: new for new, e in enumerate(experts)} for layer, experts in kept.items()}
    for stored in mixture.stored(further):
        place = mixture.counted.get(stored.name)
        if place is None:
            piece = copy_of(stored, stored.dtype)
            yield Job(stored.name, stored.dtype, stored.shape, (piece,)), None
            continue
        factor = _factor(place, down_factors)
        if place.kind == "single":
            if place.expert in places[place.layer]:
                name = mixture.places.renumbered(stored.name, places[place.layer][place.expert])
                piece = blends.get((stored.name, place.expert)) or piece_of(whole(stored), stored.dtype, weight=factor)
                yield Job(name, stored.dtype, stored.shape, (piece,)), place
        else:
            shape = list(stored.shape)
            shape[place.axis] = len(kept[place.layer])
            pieces = _cut(stored, place.axis, kept[place.layer], blends, factor)
            if place.spec is not None and place.spec.flat:
                shape = [shape[0] * shape[1], *shape[2:]]
            yield Job(stored.name, stored.dtype, tuple(shape), tuple(pieces)), place


def _cut(
    stored: StoredTensor, axis: int, kept: Sequence[int], blends: Mapping[tuple[str, int], Piece], factor: float
) -> Iterator[Piece]:
    """The kept experts of ``stored`` along ``axis``."""
    if not any((stored.name, expert) in blends for expert in kept):
        taken = neurons(whole(stored), stored.shape, axis, np.array(kept, np.int64))
        yield piece_of(taken, stored.dtype, weight=factor)
        return
    size = stored.elements // stored.shape[0]  # experts that others are merged into lie whole
    for expert in kept:
        part = Slice(stored, expert * size, size)
        yield blends.get((stored.name, expert)) or piece_of(part, stored.dtype, weight=factor)


def _factor(place: Place, down_factors: Mapping[int, float]) -> float:
    down = place.plain is not None and place.plain.roles[0] in ("down", "down_bias")
    return down_factors.get(place.layer, 1.0) if down else 1.0


def forget_further(config: Config) -> None:
    """Say in ``config`` that there are no layers for further tokens."""
    config |= {key: 0 for key in _NEXT_TOKEN_KEYS if config.get(key)}


def pruned_config(mixture: Mixture, kept: Kept, further: bool) -> Config:
    """config.json with the new number of experts under every key that holds the old one."""
    config = copy.deepcopy(mixture.config)
    count = len(next(iter(kept.values())))
    text_config(config).update(mixture.layout.rule.counts(count, mixture.top_k, mixture.slices))
    for place in (config, config.get("text_config")):
        if isinstance(place, dict):
            mixture.layout.recount(place, count)
            if mixture.extra and not further:
                forget_further(place)
    if isinstance(config.get("quantization_config"), dict):
        config["quantization_config"] = _renumber(config["quantization_config"], mixture.places, kept)
    return config


def _renumber(value: Any, places: Places, kept: Kept) -> Any:
    """Names of modules inside ``value`` with the experts' new numbers, dropped experts left out."""

    def name(text: str) -> str | None:
        place = places.named(text)
        if place.kind != "single" or place.layer not in kept:
            return text
        experts = kept[place.layer]
        if place.expert not in experts:
            return None
        return places.renumbered(text, experts.index(place.expert))

    def walk(item: Any) -> Any:
        if isinstance(item, dict):
            renamed = ((name(key), walk(inner)) for key, inner in item.items())
            return {key: inner for key, inner in renamed if key is not None}
        if isinstance(item, list):
            walked = (name(inner) if isinstance(inner, str) else walk(inner) for inner in item)
            return [inner for inner in walked if inner is not None]
        return item

    return walk(value)
