"""Routers drawn without data: calibrated, normal or zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from moeify.checkpoint.arithmetic import Float32, generator
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Values
from moeify.checkpoint.slices import Slice, whole
from moeify.routing.config import RouterInit
from moeify.routing.statistics import normalised

LOGIT_STD = 0.65
"""Calibrated routers' standard deviation of a logit: normalised entropy about 0.92 at 8 experts."""

NORMAL_STD = 0.02
_BLOCK_ELEMENTS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class UpProjection:
    """The FFN's up-projection of one layer, which reads what the router reads.

    ``part`` holds its elements in row-major order; ``hidden_axis`` is 1 for [F, H] and 0 for the
    transposed [H, F].
    """

    part: Slice
    hidden_size: int
    hidden_axis: int

    def column_rms(self, files: SourceFiles) -> Float32:
        """Root mean square [H] of the weights that read each input dimension, in one pass."""
        width = self.part.elements // self.hidden_size
        row = self.hidden_size if self.hidden_axis == 1 else width
        rows_at_once = max(1, _BLOCK_ELEMENTS // row)
        squares = np.zeros(self.hidden_size)
        for first in range(0, self.part.elements // row, rows_at_once):
            count = min(rows_at_once * row, self.part.elements - first * row)
            block = np.square(files.values(self.part, first * row, count)).reshape(-1, row)
            if self.hidden_axis == 1:
                squares += block.sum(axis=0, dtype=np.float64)
            else:
                squares[first : first + len(block)] = block.sum(axis=1, dtype=np.float64)
        return np.sqrt(squares / width).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class RouterRows(Values):
    """A router's weight [E, H] as one piece, drawn from a generator that ``key`` seeds.

    ``norm`` and ``norm_bias`` are the weight and the bias [H] of the normalisation whose output
    the router reads, ``norm_offset`` is what it adds to its weight, and ``up`` the projection that reads it
    too; calibrated rows take all of them into account. Each row is there for ``tied`` experts.
    """

    init: RouterInit
    num_experts: int
    hidden_size: int
    dtype: str
    key: tuple[int | str, ...]
    norm: StoredTensor | None = None
    norm_bias: StoredTensor | None = None
    norm_offset: float = 0.0
    up: UpProjection | None = None
    tied: int = 1

    @property
    def elements(self) -> int:
        return self.num_experts * self.hidden_size

    def sources(self) -> Iterator[StoredTensor]:
        yield from (t for t in (self.norm, self.norm_bias) if t is not None)
        if self.up is not None:
            yield self.up.part.tensor

    def values(self, files: SourceFiles) -> Float32:
        gain, bias = (None if t is None else files.values(whole(t)) for t in (self.norm, self.norm_bias))
        gain = None if gain is None else gain + np.float32(self.norm_offset)
        reader = None
        if self.up is not None and self.init == "calibrated":
            reader = self.up.column_rms(files)
        shape = (self.num_experts // self.tied, self.hidden_size)
        rows = router_rows(self.init, *shape, self.key, gain=gain, bias=bias, reader=reader)
        return np.repeat(rows, self.tied, axis=0)


@dataclass(frozen=True, kw_only=True)
class NormalRows(Values):
    """``count`` values of N(mean, std^2), drawn from a generator that ``key`` seeds."""

    count: int
    std: float
    dtype: str
    key: tuple[int | str, ...]
    mean: float = 0.0

    @property
    def elements(self) -> int:
        return self.count

    def values(self, files: SourceFiles) -> Float32:
        draws = generator(self.key).standard_normal(self.count)
        # A sum, so that zeros have no sign.
        return (draws * self.std + self.mean).astype(np.float32)


def router_rows(
    init: RouterInit,
    num_experts: int,
    hidden_size: int,
    key: tuple[int | str, ...],
    *,
    gain: Float32 | None = None,
    bias: Float32 | None = None,
    reader: Float32 | None = None,
) -> Float32:
    """Rows [E, H] of an untrained router.

    ``normal``: N(0, 0.02^2), the default of transformers. ``zeros``: all experts tie.
    ``calibrated``: independent directions that see what differs between tokens, not what all
    tokens share, because a shared direction favours one expert everywhere:

    - orthogonal to the norm's ``bias`` [H] where there is one;
    - damped by the cube of ``reader`` [H], the root mean square of the up-projection's weights
      for each input dimension: a few dimensions carry massive, nearly constant activations
      (arXiv:2402.17762), and a trained FFN has learned small weights for them;
    - scaled with the norm's ``gain`` [H] so that each logit has standard deviation 0.65 on inputs
      whose normalised components are uncorrelated.
    """
    if init == "zeros":
        return np.zeros((num_experts, hidden_size), np.float32)
    rows = generator(key).standard_normal((num_experts, hidden_size))
    if init == "normal":
        return (rows * NORMAL_STD).astype(np.float32)
    if reader is not None and reader.any():
        # The cube is where dead experts stop on real models: docs/measured/routers.md has the table.
        rows *= (reader.astype(np.float64) / reader.max()) ** 3
    if bias is not None and (length := float(np.linalg.norm(bias))) > 0:
        common = bias.astype(np.float64) / length
        rows -= np.outer(rows @ common, common)
    gain64 = 1.0 if gain is None else gain.astype(np.float64)
    scale = np.linalg.norm(rows * gain64, axis=1, keepdims=True)
    return (rows * (LOGIT_STD / np.where(scale > 0, scale, 1.0))).astype(np.float32)


def logit_std(rows: Float32, gain: Float32 | None) -> float:
    """Root mean square over experts of the logit's standard deviation.

    For ``rows`` [E, H] on an input whose normalised components are uncorrelated with variance
    ``gain``^2 [H].
    """
    scaled = rows.astype(np.float64) * (1.0 if gain is None else gain.astype(np.float64))
    return float(np.sqrt(np.mean(np.sum(scaled**2, axis=1))))


@cache
def _standard_logits(num_experts: int) -> np.ndarray:
    return generator((num_experts, "entropy")).standard_normal((2048, num_experts))


def expected_entropy(std: float, num_experts: int) -> float:
    """Mean normalised entropy H(p)/ln E of softmax over E independent logits N(0, std^2)."""
    logits = _standard_logits(num_experts) * std
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    p = weights / weights.sum(axis=1, keepdims=True)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)
    return normalised(float(entropy.mean()), num_experts)
