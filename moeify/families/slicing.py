"""Slices of a dense feed-forward network: their neurons, and their share of what has none."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from moeify.checkpoint.slices import Run, whole
from moeify.families.base import DenseLayout
from moeify.families.dense_checkpoint import Dense

if TYPE_CHECKING:
    from moeify.checkpoint.gather import Index


@lru_cache(maxsize=256)
def slice_index(size: int, number: int, count: int = 1) -> Index:
    """The neurons of ``count`` slices of ``size`` from ``number`` on, one array for all of their tensors."""
    import numpy as np

    return np.arange(number * size, (number + count) * size)


def slice_share(role: str, slices: int, count: int = 1) -> float:
    """What ``count`` of ``slices`` take of a tensor: all slices add the last bias, which has no neurons."""
    return count / slices if role == "down_bias" else 1.0


def neuron_axis(layout: DenseLayout, role: str) -> int | None:
    """The axis of an FFN tensor along which neurons lie; None for the last bias."""
    shape = next(part.shape for part in layout.ffn if part.role == role)
    return shape.index("F") if "F" in shape else None


def slice_of(view: Dense, layer: int, role: str, number: int, slices: int) -> tuple[Run, float]:
    """Slice ``number`` of one FFN tensor, and what it is multiplied by."""
    from moeify.checkpoint.gather import neurons

    tensor, axis = view.ffn(layer)[role], neuron_axis(view.layout, role)
    run: Run = whole(tensor)
    if slices > 1 and axis is not None:
        run = neurons(whole(tensor), tensor.shape, axis, slice_index(tensor.shape[axis] // slices, number))
    return run, slice_share(role, slices)
