"""The aimer score: how evenly an expert's weights are spread, from the weights alone."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moeify.checkpoint.arithmetic import decode
from moeify.checkpoint.files import Slice, SourceFiles
from moeify.checkpoint.writer import Progress
from moeify.errors import CheckpointError
from moeify.families.mixture import Mixture

__all__ = ["aimer_scores", "check_aimer"]

_BLOCK = 1 << 18
_WEIGHT_ROLES = frozenset({"gate", "up", "down"})


@dataclass(slots=True)
class _Sums:
    count: int = 0
    absolute: float = 0.0
    squares: float = 0.0


def aimer_scores(mixture: Mixture, progress: Progress | None = None) -> dict[int, list[float]]:
    """mean|w| / RMS(w) of each expert's gate, up and down weights (arXiv 2603.18492).

    High goes first: an expert whose weights are all alike in size has learnt least. Weights are
    read in blocks of 1 MB, whatever the size of the checkpoint. Raises ``CheckpointError`` for
    quantised experts and for NaN.
    """
    check_aimer(mixture)
    layers, total = mixture.moe_layers, mixture.num_experts
    weights = [spec for spec in mixture.layout.experts if _WEIGHT_ROLES.intersection(spec.roles)]
    scores: dict[int, list[float]] = {layer: [] for layer in layers}
    with SourceFiles() as files, ThreadPoolExecutor(4) as pool:
        slices = {
            (n, e): [mixture.expert(n, spec, e)[0] for spec in weights]
            for n in layers
            for e in range(total)
        }
        for part in slices.values():
            for piece in part:
                files.handle(piece.tensor.path)  # opened here, because handle() is for one thread
        results = pool.map(lambda key: _score(files, slices[key]), slices)
        for done, ((layer, _), score) in enumerate(zip(slices, results, strict=True), 1):
            scores[layer].append(score)
            if progress is not None:
                progress(done, len(slices))
    return scores


def check_aimer(mixture: Mixture) -> None:
    """Raise ``CheckpointError`` for quantised experts."""
    mixture.check_plain(
        "aimer cannot read quantised weights",
        "choose experts by hand, with --drop, or by text, with --by reap and --dataset, where"
        " transformers can load the checkpoint",
    )


def _score(files: SourceFiles, slices: list[Slice]) -> float:
    sums = _Sums()
    for part in slices:
        for first in range(0, part.elements, _BLOCK):
            elements = min(_BLOCK, part.elements - first)
            values = decode(files.read_elements(part, first, elements), part.tensor.dtype)
            sums.count += elements
            # Blocks are short enough for float32: pairwise sums and BLAS err by 1e-6 in them.
            sums.absolute += float(np.abs(values, out=values).sum())
            sums.squares += float(np.dot(values, values))
    # An expert of zeros does nothing: it goes before every other, whose score is below 1.
    score = sums.absolute / math.sqrt(sums.count * sums.squares) if sums.squares else 1.0
    if not math.isfinite(score):
        raise CheckpointError(
            f"tensor {slices[0].tensor.name!r} or its neighbours hold NaN or infinity",
            "the checkpoint is damaged or its training diverged; use another one",
        )
    return score
