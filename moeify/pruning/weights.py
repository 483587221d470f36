"""What criteria need of experts' weights, summed up in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.slices import Slice
from moeify.errors import CheckpointError
from moeify.families.mixture import Mixture
from moeify.progress import stage
from moeify.pruning.criteria import WEIGHT_SUMS

_BLOCK = 1 << 18
_WEIGHT_ROLES = frozenset({"gate", "up", "down"})


def weight_sums(mixture: Mixture, layers: Sequence[int] | None = None) -> dict[int, dict[str, NDArray[np.float64]]]:
    """``WEIGHT_SUMS`` [E] of the experts of every layer, or of ``layers``.

    Weights are read in blocks of 1 MB, whatever the size of the checkpoint. Raises
    ``CheckpointError`` for NaN.
    """
    layers, total = mixture.moe_layers if layers is None else layers, mixture.num_experts
    weights = [spec for spec in mixture.layout.experts if _WEIGHT_ROLES.intersection(spec.roles)]
    found = {layer: {name: np.zeros(total) for name in WEIGHT_SUMS} for layer in layers}
    with SourceFiles() as files, ThreadPoolExecutor(4) as pool:
        slices = {(n, e): [mixture.expert(n, spec, e)[0] for spec in weights] for n in layers for e in range(total)}
        for part in slices.values():
            for piece in part:
                files.handle(piece.tensor.path)  # opened here, because handle() is for one thread
        results = pool.map(lambda key: _summed(files, slices[key]), slices)
        with stage("reading experts", len(slices), "experts") as reading:
            for (layer, expert), sums in zip(slices, results, strict=True):
                for name, value in zip(WEIGHT_SUMS, sums, strict=True):
                    found[layer][name][expert] = value
                reading.advance()
    return found


def check_weights(mixture: Mixture, by: str) -> None:
    """Raise ``CheckpointError`` for quantised experts, whose weights the criterion cannot read."""
    mixture.check_plain(
        f"{by} cannot read quantised weights",
        "choose experts by hand, with --drop, or by text, with --by reap and --dataset, where"
        " transformers can load the checkpoint",
    )


def _summed(files: SourceFiles, slices: list[Slice]) -> tuple[int, float, float]:
    count, absolute, squares = 0, 0.0, 0.0
    for part in slices:
        for first in range(0, part.elements, _BLOCK):
            elements = min(_BLOCK, part.elements - first)
            values = files.values(part, first, elements)
            count += elements
            # Blocks are short enough for float32: pairwise sums and BLAS err by 1e-6 in them.
            absolute += float(np.abs(values, out=values).sum())
            squares += float(np.dot(values, values))
    if not math.isfinite(absolute + squares):
        raise CheckpointError(
            f"tensor {slices[0].tensor.name!r} or its neighbours hold NaN or infinity",
            "the checkpoint is damaged or its training diverged; use another one",
        )
    return count, absolute, squares
