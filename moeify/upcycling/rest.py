"""Attention, norms and embeddings as the mean of all sources, and the dense model they make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moeify.checkpoint.arithmetic import FLOAT_DTYPES
from moeify.checkpoint.files import Slice
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Blend, Job, Piece, copy_of
from moeify.checkpoint.lowrank import LowRank
from moeify.checkpoint.writer import parse_size, plan_shards, write_shards
from moeify.families.dense_view import DenseView
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.sources import ExpertSource

__all__ = ["mean_piece", "write_mean_model"]


def mean_piece(
    sources: tuple[ExpertSource, ...], name: str, base: StoredTensor, options: UpcycleConfig,
    dtype: str,
) -> Piece:  # fmt: skip
    """The weighted mean of one tensor over ``sources``; the base's own where it is no float."""
    if base.dtype not in FLOAT_DTYPES:
        return copy_of(base, dtype)
    given = options.weights or (1.0,) * len(sources)
    weights: dict[StoredTensor, float] = {}
    changes: list[LowRank] = []
    for entry, weight in zip(sources, given, strict=True):
        share = weight / sum(given)
        tensor = entry.tensor(name)
        weights[tensor] = weights.get(tensor, 0.0) + share
        changes += [change.times(share) for change in entry.changes(name)]
    if len(weights) == 1:
        return copy_of(next(iter(weights)), dtype, changes=tuple(changes))
    terms = tuple((Slice(t, 0, t.elements), share) for t, share in weights.items())
    return Blend(terms, dtype, changes=tuple(changes))


def write_mean_model(
    folder: Path, base: DenseView, sources: tuple[ExpertSource, ...], options: UpcycleConfig
) -> None:
    """Write the dense model whose every tensor, FFNs included, is the mean of ``sources``."""
    shards = plan_shards(_mean_jobs(base, sources, options), parse_size(options.max_shard_size))
    write_shards(folder, shards)
    config = (base.checkpoint.folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(config)


def _mean_jobs(
    base: DenseView, sources: tuple[ExpertSource, ...], options: UpcycleConfig
) -> Iterator[Job]:
    for name, tensor in (*base.base.items(), *base.heads.items()):
        piece = mean_piece(sources, name, tensor, options, tensor.dtype)
        yield Job(tensor.name, tensor.dtype, tensor.shape, (piece,))
