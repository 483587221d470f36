"""The aimer score: how evenly an expert's weights are spread, from the weights alone."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moeify.checkpoint.arithmetic import FLOAT_DTYPES, decode
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor, tensor_nbytes
from moeify.checkpoint.writer import Progress
from moeify.errors import CheckpointError
from moeify.pruning.anatomy import Anatomy

__all__ = ["aimer_scores", "expert_slices"]

_BLOCK = 1 << 18
_WEIGHT_ROLES = frozenset({"gate", "up", "down"})


@dataclass(slots=True)
class _Sums:
    count: int = 0
    absolute: float = 0.0
    squares: float = 0.0


def expert_slices(
    anatomy: Anatomy, layer: int, expert: int, roles: frozenset[str] = _WEIGHT_ROLES
) -> list[tuple[StoredTensor, int, int]]:
    """Where one expert's weights lie: tensor, first element, elements."""
    view, found = anatomy.view, []
    for spec in view.layout.experts:
        if not roles.intersection(spec.roles):
            continue
        name = view.layer_prefix(layer) + spec.name.format(expert=expert)
        stored = view.checkpoint[name]
        size = stored.elements // view.num_experts if spec.fused else stored.elements
        found.append((stored, expert * size if spec.fused else 0, size))
    return found


def aimer_scores(anatomy: Anatomy, progress: Progress | None = None) -> dict[int, list[float]]:
    """mean|w| / RMS(w) of each expert's gate, up and down weights (arXiv 2603.18492).

    High goes first: an expert whose weights are all alike in size has learnt least. Weights are
    read in blocks of 1 MB, whatever the size of the checkpoint. Raises ``CheckpointError`` for
    quantised experts and for NaN.
    """
    layers, total = anatomy.view.moe_layers, anatomy.view.num_experts
    scores: dict[int, list[float]] = {layer: [] for layer in layers}
    with SourceFiles() as files, ThreadPoolExecutor(4) as pool:
        slices = {(n, e): expert_slices(anatomy, n, e) for n in layers for e in range(total)}
        for part in slices.values():
            for stored, _, _ in part:
                _check_float(stored)
                files.handle(stored.path)  # opened here, because handle() is for one thread
        results = pool.map(lambda key: _score(files, slices[key]), slices)
        for done, ((layer, _), score) in enumerate(zip(slices, results, strict=True), 1):
            scores[layer].append(score)
            if progress is not None:
                progress(done, len(slices))
    return scores


def _check_float(stored: StoredTensor) -> None:
    if stored.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor {stored.name!r} has dtype {stored.dtype}: aimer cannot read quantised weights",
            "choose experts with --by reap and --dataset, or by hand with --drop",
            path=stored.path,
        )


def _score(files: SourceFiles, slices: list[tuple[StoredTensor, int, int]]) -> float:
    sums = _Sums()
    for stored, start, count in slices:
        for first in range(start, start + count, _BLOCK):
            elements = min(_BLOCK, start + count - first)
            begin = stored.start + tensor_nbytes(stored.dtype, (first,))
            raw = files.read(stored.path, begin, tensor_nbytes(stored.dtype, (elements,)))
            values = decode(raw, stored.dtype)
            sums.count += elements
            # Blocks are short enough for float32: pairwise sums and BLAS err by 1e-6 in them.
            sums.absolute += float(np.abs(values, out=values).sum())
            sums.squares += float(np.dot(values, values))
    # An expert of zeros does nothing: it goes before every other, whose score is below 1.
    score = sums.absolute / math.sqrt(sums.count * sums.squares) if sums.squares else 1.0
    if not math.isfinite(score):
        raise CheckpointError(
            f"tensor {slices[0][0].name!r} or its neighbours hold NaN or infinity",
            "the checkpoint is damaged or its training diverged; use another one",
        )
    return score
