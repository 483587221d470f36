"""Scores of every expert under every criterion, as a file that outlives the model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from moeify.pruning.config import Criterion

__all__ = ["SCORES_FILE", "LayerScores", "Scores", "checkpoint_fingerprint"]

SCORES_FILE = "scores.json"

SCHEMA = "moeify.scores/1"
SUMS = ("frequency", "gate", "ean", "weighted_norm", "max_norm", "probability")
_SAMPLE_BYTES = 64
_SUPER_QUANTILE = 0.995
_SUPER_PART = 0.1
_SUPER_DEPTH = 0.75


@dataclass(kw_only=True)
class LayerScores:
    """Float64 sums [E] over the tokens of one layer.

    X_j are the tokens routed to expert j, g_j the weights that multiply its outputs f_j:
    ``frequency`` |X_j| (arXiv 2404.05089), ``gate`` sum g_j, ``ean`` sum ||f_j|| (2504.05586),
    ``weighted_norm`` sum g_j ||f_j||, ``max_norm`` max ||f_j||, ``probability`` the sum over all
    ``tokens`` of the router's softmax, zero where the family renormalises.
    """

    tokens: int
    sums: dict[str, NDArray[np.float64]]

    @classmethod
    def empty(cls, num_experts: int) -> LayerScores:
        """Sums over no token."""
        return cls(tokens=0, sums={name: np.zeros(num_experts) for name in SUMS})

    @property
    def reap(self) -> NDArray[np.float64]:
        """Mean over X_j of g_j ||f_j|| (arXiv 2510.13999); 0 for an expert without tokens."""
        mean: NDArray[np.float64] = self.sums["weighted_norm"] / np.maximum(
            self.sums["frequency"], 1
        )
        return mean

    def score(self, by: Criterion) -> list[float]:
        """One criterion's value for every expert."""
        values: list[float] = (self.reap if by == "reap" else self.sums[by]).tolist()
        return values

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
    aimer: dict[int, list[float]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens seen by each layer."""
        return next(iter(self.layers.values())).tokens

    def by(self, criterion: Criterion) -> dict[int, list[float]]:
        """One criterion's value for every expert of every layer."""
        return {layer: sums.score(criterion) for layer, sums in self.layers.items()}

    def super_experts(self) -> dict[int, tuple[int, ...]]:
        """Experts whose outputs are outliers and must stay (arXiv 2507.23279, section 3).

        Those with max ||f|| above the 99.5th percentile of all experts and above a tenth of the
        largest, in the first three quarters of the layers.
        """
        norms = {layer: sums.sums["max_norm"] for layer, sums in self.layers.items()}
        everything = np.concatenate(list(norms.values()))
        limit = max(
            float(np.quantile(everything, _SUPER_QUANTILE)), float(everything.max()) * _SUPER_PART
        )
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
            "layers": {str(n): self._layer(n, sums) for n, sums in self.layers.items()},
        }
        with output_errors(path), replacing(path) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def _layer(self, layer: int, sums: LayerScores) -> dict[str, Any]:
        values: dict[str, Any] = {"tokens": sums.tokens}
        values |= {name: row.tolist() for name, row in sums.sums.items()}
        values["reap"] = sums.reap.tolist()
        values["ean_mean"] = (sums.sums["ean"] / np.maximum(sums.sums["frequency"], 1)).tolist()
        if layer in self.aimer:
            values["aimer"] = self.aimer[layer]
        return values

    @classmethod
    def read(cls, path: Path, mixture: Mixture) -> Scores:
        """The scores in ``path``; raises ``RoutingError`` where they belong to another model."""
        document = read_json(path)
        if document.get("schema") != SCHEMA:
            raise RoutingError(
                f"{path} is no file of scores", "name the scores.json that moeify prune wrote"
            )
        try:
            scores = cls(
                source=str(document["source"]),
                fingerprint=str(document["fingerprint"]),
                data=str(document["data"]),
                dataset=str(document["dataset"]),
                layers=_layers(document["layers"], mixture.num_experts),
                batches=int(document["batches"]),
                complete=document["complete"] is True,
                aimer=_aimer(document["layers"], mixture.num_experts),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RoutingError(
                f"{path} is damaged: {error}", "calibrate again with --dataset"
            ) from error
        if scores.fingerprint != checkpoint_fingerprint(mixture):
            raise RoutingError(
                f"the scores in {path} were made on {scores.source}, whose weights are not those of"
                f" {mixture.checkpoint.folder.name}",
                "calibrate on this checkpoint: pass --dataset, and --scores with a new file",
            )
        if (wanted := mixture.moe_layers) != tuple(sorted(scores.layers)):
            found = ", ".join(map(str, sorted(scores.layers))) or "no layer"
            raise RoutingError(
                f"{path} is damaged: it holds scores of {found}, not of layers"
                f" {', '.join(map(str, wanted))}",
                "calibrate again with --dataset",
            )
        return scores


def _layers(document: Mapping[str, Any], num_experts: int) -> dict[int, LayerScores]:
    layers = {}
    for layer, values in document.items():
        sums = {name: _row(layer, values[name], num_experts) for name in SUMS}
        layers[int(layer)] = LayerScores(tokens=int(values["tokens"]), sums=sums)
    return layers


def _aimer(document: Mapping[str, Any], num_experts: int) -> dict[int, list[float]]:
    """The scores that need no text: of all layers or of none."""
    found: dict[int, list[float]] = {}
    for layer, values in document.items():
        if "aimer" in values:
            found[int(layer)] = _row(layer, values["aimer"], num_experts).tolist()
    if found and len(found) != len(document):
        raise ValueError("only some of its layers have scores by aimer")
    return found


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
            whole = part is not None and part.kind == "router"
            count = stored.nbytes if whole else min(_SAMPLE_BYTES, stored.nbytes)
            start = stored.start + (stored.nbytes - count) // 2
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
            digest.update(files.read(stored.path, start, count))
    return digest.hexdigest()
