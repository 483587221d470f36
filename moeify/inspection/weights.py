"""Routers and experts of a mixture, read layer by layer: alike, damaged, far from their source?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.arithmetic import Float32, decode
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import FLOAT_DTYPES
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.slices import Run, run_nbytes, whole
from moeify.checkpoint.source import resolve_source
from moeify.checkpoint.turning import turned
from moeify.errors import CheckpointError, ConfigError
from moeify.families.dense_checkpoint import Dense, open_dense
from moeify.families.laying import role_part, turned_roles
from moeify.families.mixture import Mixture
from moeify.families.numbering import Numbering
from moeify.families.problems import Problem, numbers
from moeify.families.registry import conversions_to, dense_layout
from moeify.families.slicing import slice_of
from moeify.inspection.config import InspectConfig
from moeify.inspection.opening import Opened
from moeify.inspection.report import InspectReport
from moeify.progress import stage
from moeify.provenance.record import Record

_BLOCK_BYTES = 32 << 20  # of all experts' values together, as float32

Float64 = NDArray[np.float64]


def examine_weights(opened: Opened, mixture: Mixture, report: InspectReport, config: InspectConfig) -> None:
    """Add the figures of routers and experts to every layer of ``report``.

    At most 32 MiB of values are held at a time, whatever the size of layer and shard. A layer that
    cannot be read is a problem of the report.
    """
    dense = None if config.reference is None else _dense_source(config.reference, mixture, opened.record)
    with SourceFiles() as files, stage("reading weights", len(report.layers), "layers") as reading:
        for layer in report.layers:
            try:
                layer.weights = _layer(files, mixture, layer.layer, dense)
            except CheckpointError as error:
                message = f"layer {layer.layer}: {error.message}"
                report.problems.append(Problem(kind="unreadable_weights", message=message))
                layer.weights = {"duplicates": [], "nonfinite": 0}
            reading.advance()
    _findings(report)


def _findings(report: InspectReport) -> None:
    damaged = [layer.layer for layer in report.layers if layer.weights["nonfinite"]]
    if damaged:
        count = sum(layer.weights["nonfinite"] for layer in report.layers)
        report.problems.append(
            Problem(kind="nonfinite", message=f"{numbers(damaged, 'layer')}: {count} values are NaN or infinite")
        )
    if copies := [layer.layer for layer in report.layers if layer.weights["duplicates"]]:
        report.notes.append(
            f"{numbers(copies, 'layer')}: experts that are exact copies of each other give their"
            " router nothing to learn from"
        )
    if any(layer.weights.get("not_measured") for layer in report.layers):
        report.notes.append("quantised experts are compared bit for bit only")


def _dense_source(dense: str, mixture: Mixture, record: Record | None) -> Dense:
    """The dense checkpoint; raises ``MoeifyError`` where experts cannot stem from it."""
    model_type = mixture.layout.model_type
    checkpoint = Checkpoint.open(resolve_source(dense).folder)
    layout = dense_layout(checkpoint.config)
    if any(step.options.get("slice_by") == "activation" for step in (record.steps if record else ())):
        raise ConfigError(
            "--reference does not know which neurons lie in which slice: text dealt them out",
            "leave --reference out; moeify verify compares what the two compute",
        )
    known = [conversion.dense.model_type for conversion in conversions_to(model_type)]
    if layout.model_type not in known:
        raise ConfigError(
            f"--reference {dense} is a {layout.model_type} checkpoint, and {model_type} experts do not stem from one",
            f"name a {' or '.join(known)} checkpoint" if known else "leave --reference out",
        )
    view = open_dense(checkpoint, layout)
    if view.num_layers != mixture.num_layers:
        raise ConfigError(
            f"--reference {dense} has {view.num_layers} layers, the mixture {mixture.num_layers}",
            "name the checkpoint that the mixture was made from",
        )
    return view


def _layer(files: SourceFiles, mixture: Mixture, layer: int, dense: Dense | None) -> dict[str, Any]:
    router = mixture.checkpoint.tensors.get(mixture.router_name(layer))
    found: dict[str, Any] = {"nonfinite": 0}
    if router is not None and router.dtype in FLOAT_DTYPES and len(router.shape) == 2:
        rows = files.values(whole(router))
        found |= router_figures(rows.reshape(router.shape))
    count, rule = mixture.found_experts(layer), mixture.layout.rule
    slices = rule.slices(mixture.config)
    experts = ExpertFigures(rule.numbering(slices if count % slices == 0 else 1, count))
    for spec in mixture.layout.experts:
        present = mixture.numbers(layer, spec)
        if not present or len(present) != experts.num_experts:
            continue  # an incomplete projection: the headers have said so
        pieces = [mixture.expert(layer, spec, expert)[0] for expert in present]
        if dense is None:
            compare_experts(files, pieces, experts)
            continue
        tensor = pieces[0].tensor
        shape = tensor.shape[1:] if spec.fused else tensor.shape
        every = experts.slices + mixture.shared_slices
        for role in spec.roles:
            parts = [role_part(piece, spec, shape, role) for piece in pieces]
            sources = [slice_of(dense, layer, role, number, every) for number in range(experts.slices)]
            if role in turned_roles(mixture.layout.experts, dense.layout.ffn):
                size = dense.ffn(layer)[role].shape
                sources = [(turned(run, size), weight) for run, weight in sources]
            compare_experts(files, parts, experts, sources)
    found["nonfinite"] += experts.nonfinite
    return found | experts.to_dict(measured_dense=dense is not None)


def router_figures(rows: Float32) -> dict[str, Any]:
    """Norms of a router's rows [E, H] and the cosines between them.

    A row of zeros has no direction: cosines are then None.
    """
    wide = rows.astype(np.float64)
    bad = int(np.count_nonzero(~np.isfinite(wide)))
    norms = np.linalg.norm(wide, axis=1)
    if bad or not np.all(norms > 0) or len(rows) < 2:
        known = None if bad else _spread(norms)
        return {"router_norm": known, "router_cosine": None, "nonfinite": bad}
    cosine = (wide / norms[:, None]) @ (wide / norms[:, None]).T
    off = ~np.eye(len(rows), dtype=bool)
    return {"router_norm": _spread(norms), "router_cosine": _spread(cosine[off], values=False), "nonfinite": 0}


class ExpertFigures:
    """Sums over all projections of one layer's E experts.

    ``squared_distances`` [E, E] are those between experts, ``squared_norms`` [E] their own, ``squared_dense`` [G]
    those of the dense network's slices. Experts of different slices have nothing in common, and are not compared.
    """

    def __init__(self, numbering: Numbering) -> None:
        self.num_experts, self.slices = num_experts, slices = numbering.num_experts, numbering.slices
        self.slice_of = np.array([numbering.place(expert)[0] for expert in range(num_experts)], np.int64)
        self.squared_distances: Float64 = np.zeros((num_experts, num_experts))
        self.squared_norms: Float64 = np.zeros(num_experts)
        self.squared_from_dense: Float64 = np.zeros(num_experts)
        self.squared_dense: Float64 = np.zeros(slices)
        self.nonfinite = 0
        self.not_measured = False
        self.hashes = [hashlib.blake2b(digest_size=16) for _ in range(num_experts)]

    def add(self, block: Float32) -> None:
        """Add the same stretch of every expert [E, n]."""
        finite = np.isfinite(block)
        if not finite.all():
            self.nonfinite += int(np.count_nonzero(~finite))
            return
        # Experts that start as copies differ by little: without their mean nothing cancels.
        centred = block - block.mean(axis=0, dtype=np.float64).astype(np.float32)
        gram = (centred @ centred.T).astype(np.float64)
        own = np.diag(gram)
        self.squared_distances += np.maximum(own[:, None] + own[None, :] - 2 * gram, 0)
        self.squared_norms += np.einsum("en,en->e", block, block, dtype=np.float64)

    def add_dense(self, block: Float32, source: Float32) -> None:
        """Add the distance of every expert [E, n] from the dense weights of its slice [G, n]."""
        difference = block - source[self.slice_of]
        self.squared_from_dense += np.einsum("en,en->e", difference, difference, dtype=np.float64)
        self.squared_dense += np.square(source, dtype=np.float64).sum(axis=1)

    @property
    def duplicates(self) -> list[list[int]]:
        """Experts that are equal to the last bit, grouped."""
        groups: dict[bytes, list[int]] = {}
        for expert, digest in enumerate(self.hashes):
            groups.setdefault(digest.digest(), []).append(expert)
        return [group for group in groups.values() if len(group) > 1]

    def distances(self) -> Float64:
        """Distances between experts [E, E], relative to the root mean square of their norms."""
        scale = np.sqrt(max(float(self.squared_norms.mean()), 1e-300))
        distances: Float64 = np.sqrt(self.squared_distances) / scale
        np.fill_diagonal(distances, 0.0)
        return distances

    def to_dict(self, *, measured_dense: bool) -> dict[str, Any]:
        """For the JSON document."""
        found: dict[str, Any] = {"duplicates": self.duplicates, "expert_distance": None}
        if self.not_measured:
            return found | {"not_measured": True}
        if self.num_experts > self.slices and not self.nonfinite:
            distances = self.distances()
            off = (self.slice_of[:, None] == self.slice_of) & ~np.eye(self.num_experts, dtype=bool)
            nearest = np.where(off, distances, np.inf).min(axis=1)
            spread = _spread(distances[off], values=False)
            found["expert_distance"] = {**spread, "nearest": _rounded(nearest)}
        if measured_dense:
            scale = np.sqrt(np.maximum(self.squared_dense, 1e-300))
            away = np.sqrt(self.squared_from_dense) / scale[self.slice_of]
            found["dense_distance"] = None if self.nonfinite else _spread(away)
        return found


def compare_experts(
    files: SourceFiles, pieces: Sequence[Run], figures: ExpertFigures, dense: Sequence[tuple[Run, float]] = ()
) -> None:
    """Add one projection of all experts to ``figures``, a stretch of every expert at a time.

    ``dense`` are the dense network's slices and what each is multiplied by.
    """
    dtype = pieces[0].tensor.dtype
    readable = dtype in FLOAT_DTYPES and all(
        piece.tensor.dtype == dtype and run_nbytes(piece) == run_nbytes(pieces[0]) for piece in pieces
    )
    if not readable:
        figures.not_measured = True
    for run, _ in dense:
        if run_nbytes(run) != run_nbytes(pieces[0]):
            raise CheckpointError(f"{run.tensor.name!r} of the dense checkpoint is not of the experts' shape or dtype")
    for offset, length in _stretches(pieces):
        first = offset * pieces[0].elements // max(run_nbytes(pieces[0]), 1)
        raws = [_read(files, piece, offset, length) for piece in pieces]
        for digest, raw in zip(figures.hashes, raws, strict=True):
            digest.update(raw)
        if not readable:
            continue
        block = np.stack([decode(raw, dtype) for raw in raws])
        figures.add(block)
        if dense:
            sources = [files.values(run, first, block.shape[1]) * np.float32(weight) for run, weight in dense]
            figures.add_dense(block, np.stack(sources))


def _read(files: SourceFiles, piece: Run, offset: int, length: int) -> bytearray:
    found = bytearray(min(length, max(run_nbytes(piece) - offset, 0)))
    piece.read_into(files, offset, memoryview(found))
    return found


def _stretches(pieces: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """Byte offset and length of the parts in which all experts are read."""
    nbytes = max(map(run_nbytes, pieces))
    length = max(_BLOCK_BYTES // (4 * len(pieces)) & ~15, 16)
    for offset in range(0, nbytes, length):
        yield offset, min(length, nbytes - offset)


def _spread(figures: Float64, *, values: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mean": _round(float(figures.mean())),
        "min": _round(float(figures.min())),
        "max": _round(float(figures.max())),
    }
    return {**found, "values": _rounded(figures)} if values else found


def _rounded(values: Float64) -> list[float]:
    return [_round(float(value)) for value in values]


def _round(value: float) -> float:
    """Six significant digits: what is left does not depend on the number of threads."""
    return float(f"{value:.6g}")
