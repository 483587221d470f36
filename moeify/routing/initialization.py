"""Routers drawn without data: calibrated, normal or zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from moeify.checkpoint.arithmetic import Float32, decode, generator
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Values
from moeify.routing.config import RouterInit

__all__ = ["NormalRows", "RouterRows", "expected_entropy", "logit_std", "router_rows"]

LOGIT_STD = 0.65
"""Calibrated routers' standard deviation of a logit: normalised entropy about 0.92 at 8 experts."""

NORMAL_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class RouterRows(Values):
    """A router's weight [E, H] as one piece, drawn from a generator that ``key`` seeds.

    ``norm`` and ``norm_bias`` are the weight and the bias [H] of the normalisation whose output
    the router reads; calibrated rows take them into account.
    """

    init: RouterInit
    num_experts: int
    hidden_size: int
    dtype: str
    key: tuple[int | str, ...]
    norm: StoredTensor | None = None
    norm_bias: StoredTensor | None = None

    @property
    def elements(self) -> int:
        return self.num_experts * self.hidden_size

    def sources(self) -> Iterator[StoredTensor]:
        yield from (t for t in (self.norm, self.norm_bias) if t is not None)

    def values(self, files: SourceFiles) -> Float32:
        gain, bias = (
            None if t is None else decode(files.read(t.path, t.start, t.nbytes), t.dtype)
            for t in (self.norm, self.norm_bias)
        )
        shape = (self.num_experts, self.hidden_size)
        return router_rows(self.init, *shape, self.key, gain=gain, bias=bias)


@dataclass(frozen=True, kw_only=True)
class NormalRows(Values):
    """``count`` values of N(0, std^2), drawn from a generator that ``key`` seeds."""

    count: int
    std: float
    dtype: str
    key: tuple[int | str, ...]

    @property
    def elements(self) -> int:
        return self.count

    def values(self, files: SourceFiles) -> Float32:
        draws = generator(self.key).standard_normal(self.count)
        return (draws * self.std).astype(np.float32)


def router_rows(
    init: RouterInit, num_experts: int, hidden_size: int, key: tuple[int | str, ...],
    *, gain: Float32 | None = None, bias: Float32 | None = None,
) -> Float32:  # fmt: skip
    """Rows [E, H] of an untrained router.

    ``calibrated``: independent directions, orthogonal to the norm's ``bias`` [H] where there is
    one (a direction that all tokens share would favour one expert everywhere), each scaled with
    the norm's ``gain`` [H] so that its logit has standard deviation 0.65 on inputs whose
    normalised components are uncorrelated. ``normal``: N(0, 0.02^2), the default of
    transformers. ``zeros``: all experts tie.
    """
    if init == "zeros":
        return np.zeros((num_experts, hidden_size), np.float32)
    rows = generator(key).standard_normal((num_experts, hidden_size))
    if init == "normal":
        return (rows * NORMAL_STD).astype(np.float32)
    gain64 = np.ones(hidden_size) if gain is None else np.abs(gain.astype(np.float64))
    if bias is not None and (length := float(np.linalg.norm(bias))) > 0:
        common = bias.astype(np.float64) / length
        rows -= np.outer(rows @ common, common)
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
    return float(entropy.mean() / math.log(num_experts))
