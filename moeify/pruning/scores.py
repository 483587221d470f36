"""Scores of every expert under every criterion, as a file that outlives the model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.replacing import replacing
from moeify.checkpoint.staging import output_errors
from moeify.errors import RoutingError
from moeify.families.mixture import Mixture
from moeify.pruning.criteria import CRITERIA, TEXT_SUMS, WEIGHT_SUMS

SCORES_FILE = "scores.json"

SCHEMA = "moeify.scores/1"
_GUARDING = ("frequency", "max_norm", "probability")
"""Sums that merging, protection and rescaling need, whatever the criterion."""
_SAMPLE_BYTES = 64
_SUPER_QUANTILE = 0.995
_SUPER_PART = 0.1
_SUPER_DEPTH = 0.75


@dataclass(kw_only=True)
class LayerScores:
    """Float64 sums [E] of one layer: over ``tokens``, and over weights once they were read."""

    tokens: int
    sums: dict[str, NDArray[np.float64]]

    @classmethod
    def empty(cls, num_experts: int) -> LayerScores:
        """Sums over no token."""
        return cls(tokens=0, sums={name: np.zeros(num_experts) for name in TEXT_SUMS})

    def kept_probability(self, kept: tuple[int, ...]) -> float:
        """Mean part of the router's softmax that ``kept`` experts have, 1 where it is unknown."""
        total = float(self.sums["probability"].sum())
        return float(self.sums["probability"][list(kept)].sum()) / total if total else 1.0


@dataclass(kw_only=True)
class Scores:
    """What calibration found, and what it belongs to; ``batches`` are those that are done."""

    source: str
    fingerprint: str
    data: str
    dataset: str
    layers: dict[int, LayerScores]
    batches: int = 0
    complete: bool = False

    @property
    def tokens(self) -> int:
        """Tokens seen by each layer."""
        return next(iter(self.layers.values())).tokens

    @property
    def frequency(self) -> dict[int, list[float]]:
        """Tokens of every expert of every layer."""
        return {layer: sums.sums["frequency"].tolist() for layer, sums in self.layers.items()}

    def super_experts(self) -> dict[int, tuple[int, ...]]:
        """Experts whose outputs are outliers and must stay (arXiv 2507.23279, section 3).

        Those with max ||f|| above the 99.5th percentile of all experts and above a tenth of the
        largest, in the first three quarters of the layers.
        """
        norms = {layer: sums.sums["max_norm"] for layer, sums in self.layers.items()}
        everything = np.concatenate(list(norms.values()))
        limit = max(float(np.quantile(everything, _SUPER_QUANTILE)), float(everything.max()) * _SUPER_PART)
        early = list(norms)[: math.ceil(_SUPER_DEPTH * len(norms))]
        found = {n: tuple(int(e) for e in np.flatnonzero(norms[n] > limit)) for n in early}
        return {layer: experts for layer, experts in found.items() if experts}

    def write(self, path: Path) -> None:
        """Write the file at once, so that an interruption leaves the last complete one."""
        document = {
            "schema": SCHEMA,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "dataset": self.dataset,
            "data": self.data,
            "complete": self.complete,
            "batches": self.batches,
            "tokens": self.tokens,
            "layers": {str(n): _written(sums) for n, sums in self.layers.items()},
        }
        with output_errors(path), replacing(path) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, mixture: Mixture) -> Scores:
        """The scores in ``path``; raises ``RoutingError`` where they belong to another model."""
        document = read_json(path)
        if document.get("schema") != SCHEMA:
            raise RoutingError(f"{path} is no file of scores", "name the scores.json that moeify prune wrote")
        try:
            scores = cls(
                source=str(document["source"]),
                fingerprint=str(document["fingerprint"]),
                data=str(document["data"]),
                dataset=str(document["dataset"]),
                layers=_layers(document["layers"], mixture.num_experts),
                batches=int(document["batches"]),
                complete=document["complete"] is True,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RoutingError(f"{path} is damaged: {error}", "calibrate again with --dataset") from error
        if scores.fingerprint != checkpoint_fingerprint(mixture):
            raise RoutingError(
                f"the scores in {path} were made on {scores.source}, whose weights are not those of"
                f" {mixture.checkpoint.folder.name}",
                "calibrate on this checkpoint: pass --dataset, and --scores with a new file",
            )
        if (wanted := mixture.moe_layers) != tuple(sorted(scores.layers)):
            found = ", ".join(map(str, sorted(scores.layers))) or "no layer"
            raise RoutingError(
                f"{path} is damaged: it holds scores of {found}, not of layers {', '.join(map(str, wanted))}",
                "calibrate again with --dataset",
            )
        return scores


def _written(layer: LayerScores) -> dict[str, Any]:
    """The sums, and for people what some criteria make of them."""
    sums = layer.sums
    made = [row for row in (CRITERIA["reap"], CRITERIA["aimer"]) if sums.keys() >= {*row.needs}]
    values = sums | {row.name: row.formula(sums) for row in made}
    if "ean" in sums:
        values["ean_mean"] = sums["ean"] / sums["frequency"].clip(1)
    return {"tokens": layer.tokens} | {name: row.tolist() for name, row in values.items()}


def _layers(document: Mapping[str, Any], num_experts: int) -> dict[int, LayerScores]:
    """What is there of each layer: files of other versions may hold fewer sums."""
    layers = {}
    for layer, values in document.items():
        names = [n for n in (*TEXT_SUMS, *WEIGHT_SUMS) if n in values or n in _GUARDING]
        sums = {name: _row(layer, values[name], num_experts) for name in names}
        layers[int(layer)] = LayerScores(tokens=int(values["tokens"]), sums=sums)
    return layers


def _row(layer: str, values: Any, num_experts: int) -> NDArray[np.float64]:
    row = np.array(values, np.float64)
    if row.shape != (num_experts,) or not np.isfinite(row).all():
        raise ValueError(f"layer {layer} does not hold {num_experts} finite scores")
    return row


def checkpoint_fingerprint(mixture: Mixture) -> str:
    """SHA-256 of every tensor's name, dtype, shape and 64 bytes from its middle, routers whole."""
    digest = hashlib.sha256()
    tensors = mixture.checkpoint.tensors
    with SourceFiles() as files:
        for name in sorted(tensors):
            stored, part = tensors[name], mixture.counted.get(name)
            whole = part is not None and part.kind == "router" and part.layer < mixture.num_layers
            count = stored.nbytes if whole else min(_SAMPLE_BYTES, stored.nbytes)
            start = stored.start + (stored.nbytes - count) // 2
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
            digest.update(files.read(stored.path, start, count))
    return digest.hexdigest()
