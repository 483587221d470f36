"""Attention, norms and embeddings as the mean of all sources."""

from __future__ import annotations

from moeify.checkpoint.arithmetic import FLOAT_DTYPES
from moeify.checkpoint.files import Slice
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Blend, Piece, copy_of, piece_of
from moeify.checkpoint.lowrank import LowRank
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.sources import ExpertSource

__all__ = ["mean_piece"]


def mean_piece(
    sources: tuple[ExpertSource, ...], name: str, base: StoredTensor, options: UpcycleConfig,
    dtype: str,
) -> Piece:  # fmt: skip
    """The weighted mean of one tensor over ``sources``; the base's own where it is no float."""
    if base.dtype not in FLOAT_DTYPES:
        return copy_of(base, dtype)
    given = options.shares or (1.0,) * len(sources)
    weights: dict[StoredTensor, float] = {}
    changes: list[LowRank] = []
    for entry, weight in zip(sources, given, strict=True):
        share = weight / sum(given)
        tensor = entry.tensor(name)
        weights[tensor] = weights.get(tensor, 0.0) + share
        changes += [change.times(share) for change in entry.changes(name)]
    terms = tuple((Slice(t, 0, t.elements), share) for t, share in weights.items())
    if len(terms) == 1:
        return piece_of(terms[0][0], dtype, changes=tuple(changes))
    return Blend(terms, dtype, changes=tuple(changes))
