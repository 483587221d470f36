"""What recipes make experts of: the tensors of the base and the sources, as pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moeify.checkpoint.gather import Index, neurons
from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.checkpoint.jobs import Blend, Noise, Piece, copy_of, piece_of
from moeify.checkpoint.lowrank import LowRank
from moeify.checkpoint.redrawn import Redrawn
from moeify.checkpoint.slices import Run, whole
from moeify.checkpoint.turning import SideBySide, turned
from moeify.errors import CheckpointError
from moeify.families.dense_checkpoint import Dense
from moeify.families.moe_layout import ExpertTensor
from moeify.families.numbering import Numbering
from moeify.families.slicing import neuron_axis, slice_index, slice_share
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.sources import ExpertSource

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
CONFIG_DTYPES = {stored: name for name, stored in _DTYPE_NAMES.items()}
"""What config.json calls the dtypes of files."""


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """The base, the ``entries`` that experts are made of (the base itself where none are named).

    Last projections are multiplied by ``down_scale``. ``numbering`` says which expert is which copy of which slice.
    ``slices`` are the neurons of each slice of a layer, where they
    are not dealt as they stand. In the roles that are ``turned``, experts lie with the axes of their matrices
    exchanged, and so does every piece.
    """

    view: Dense
    entries: tuple[ExpertSource, ...]
    options: UpcycleConfig
    down_scale: float = 1.0
    numbering: Numbering
    slices: Mapping[int, tuple[Index, ...]] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()

    @property
    def width(self) -> int:
        """Neurons of the dense FFN, F."""
        return self.view.layout.dims(self.view.checkpoint.config)["F"]

    def dtype(self, tensor: StoredTensor) -> str:
        """The dtype that what is made of ``tensor`` has in the output."""
        cast = _DTYPE_NAMES.get(self.options.dtype)
        return cast if cast and tensor.dtype in FLOAT_DTYPES else tensor.dtype

    def dealt(self, copy: int) -> tuple[int, bool]:
        """The entry that copy number ``copy`` is made of, dealt out in turn, and whether it repeats one."""
        number = copy % len(self.entries)
        before = self.entries if copy >= len(self.entries) else self.entries[:number]
        folder = self.entries[number].source.folder
        return number, any(entry.source.folder == folder for entry in before)

    def piece(
        self,
        layer: int,
        role: str,
        expert: int,
        *,
        entry: int = 0,
        noisy: bool = True,
        index: Index | None = None,
        weight: float = 1.0,
    ) -> Piece:
        """One tensor of an FFN for an expert.

        It comes from ``entries[entry]``, times ``weight``, with the expert's own noise where it is
        ``noisy`` (biases never are). Of its neurons there are those at ``index``, in that order,
        None for all; what has no neurons, as the last bias, comes whole.
        """
        part = next(part for part in self.view.layout.ffn if part.role == role)
        name = self.view.layout.layer.format(layer=layer) + part.name
        tensor, changes = self.entries[entry].tensor(name), self.entries[entry].changes(name)
        run: Run = whole(tensor)
        axis = neuron_axis(self.view.layout, role)
        if index is not None and axis is not None:
            run = neurons(whole(tensor), tensor.shape, axis, index)
            changes = tuple(change.at(index, axis) for change in changes)
        if role in self.turned:
            run, changes = turned(run, tensor.shape), tuple(change.turned() for change in changes)
        noise = None
        if noisy and self.options.noise and not role.endswith("_bias"):
            noise = Noise(self.options.noise, (self.options.seed, "noise", tensor.name, expert))
        scale = self.down_scale if role == "down" else 1.0
        return piece_of(run, self.dtype(self.view.base[name]), noise, weight * scale, changes)

    def slice_neurons(self, layer: int, number: int) -> Index:
        """The neurons of slice ``number`` of a layer."""
        if layer in self.slices:
            return self.slices[layer][number]
        return slice_index(self.width // self.options.slices, number)

    def shared(self, layer: int, role: str) -> Piece:
        """A tensor of the base's last slices, which every token visits: their one copy, without noise."""
        slices, shared = self.options.slices, self.options.shared
        index = np.concatenate([self.slice_neurons(layer, n) for n in range(slices - shared, slices)])
        weight = slice_share(role, slices, shared)
        return self.piece(layer, role, 0, noisy=False, index=index, weight=weight)

    def redrawn(self, layer: int, role: str, expert: int, index: Index) -> Piece:
        """A tensor of the base's FFN for an expert, without noise, its neurons at ``index`` drawn anew.

        They come from the normal distribution with the tensor's own mean and deviation; what has no neurons, as the
        last bias, comes as it is.
        """
        part = next(part for part in self.view.layout.ffn if part.role == role)
        piece, axis = self.piece(layer, role, expert, noisy=False), neuron_axis(self.view.layout, role)
        if axis is None:
            return piece
        name = self.view.layout.layer.format(layer=layer) + part.name
        tensor = self.entries[0].tensor(name)
        shape = tensor.shape
        if role in self.turned:
            shape, axis = (shape[1], shape[0]), 1 - axis
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor {tensor.name!r} has dtype {tensor.dtype}: its neurons cannot be drawn anew",
                "upcycle the unquantised checkpoint",
                path=tensor.path,
            )
        key = (self.options.seed, "redrawn", tensor.name, expert)
        inner = math.prod(shape[axis + 1 :])
        return Redrawn(piece, tensor, self.dtype(self.view.base[name]), index, shape[axis], inner, key)

    def rest(self, name: str, base: StoredTensor) -> Piece:
        """A tensor that is no expert's, called ``name`` by the base and the entries.

        The base's own, or the weighted mean of all entries where the options say so and it is one
        of floats.
        """
        dtype, weights = self.dtype(base), dict[StoredTensor, float]()
        if self.options.rest == "base" or base.dtype not in FLOAT_DTYPES:
            return copy_of(base, dtype)
        changes: list[LowRank] = []
        given = self.options.shares or (1.0,) * len(self.entries)
        for entry, weight in zip(self.entries, given, strict=True):
            share = weight / sum(given)
            tensor = entry.tensor(name)
            weights[tensor] = weights.get(tensor, 0.0) + share
            changes += [change.times(share) for change in entry.changes(name)]
        terms = tuple((whole(t), share) for t, share in weights.items())
        if len(terms) == 1:
            return piece_of(terms[0][0], dtype, changes=tuple(changes))
        return Blend(terms, dtype, changes=tuple(changes))


def laid(pieces: list[Piece], spec: ExpertTensor, shape: tuple[int, ...]) -> list[Piece]:
    """The pieces of one expert's roles in a tensor of ``shape``: as they are, or side by side in each of its rows."""
    beside = len(pieces) > 1 and spec.neuron_axis == len(shape) - 1 > 0
    return [SideBySide(tuple(pieces), shape[0])] if beside else pieces
