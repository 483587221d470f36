"""How the values of an expert lie, against those of the dense network that it is made of or becomes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moeify.checkpoint.slices import Slice
from moeify.families.base import FfnTensor
from moeify.families.moe_layout import ExpertTensor

if TYPE_CHECKING:
    from moeify.checkpoint.gather import Gather


def turned_roles(experts: Iterable[ExpertTensor], ffn: Iterable[FfnTensor]) -> frozenset[str]:
    """The roles whose matrix has its axes exchanged in experts, against the dense one."""
    dense = {part.role: part.shape for part in ffn}
    return frozenset(
        role for spec in experts for role in spec.roles if dense[role] != spec.single == tuple(reversed(dense[role]))
    )


def role_part(expert: Slice, spec: ExpertTensor, shape: tuple[int, ...], role: str) -> Slice | Gather:
    """One role's part of an expert's tensor, which has ``shape``, in the order in which it lies there."""
    import numpy as np

    from moeify.checkpoint.gather import neurons

    axis, count, number = spec.neuron_axis, len(spec.roles), spec.roles.index(role)
    if count == 1 or axis is None:
        return expert
    size = shape[axis] // count
    if axis == 0 and not spec.interleaved:
        part = expert.elements // count
        return Slice(expert.tensor, expert.start + number * part, part)
    index = np.arange(number, shape[axis], count) if spec.interleaved else np.arange(size) + number * size
    return neurons(expert, shape, axis, index)


def role_shape(spec: ExpertTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of such a part."""
    return tuple(size // len(spec.roles) if at == spec.neuron_axis else size for at, size in enumerate(shape))
