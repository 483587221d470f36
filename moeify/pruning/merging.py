"""Dropped experts averaged into the kept ones nearest to them, neurons aligned first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from moeify.checkpoint.arithmetic import Float32
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.gather import Index, neurons
from moeify.checkpoint.jobs import Blend, Piece
from moeify.checkpoint.slices import Run, whole
from moeify.errors import CheckpointError
from moeify.families.mixture import Mixture
from moeify.families.moe_layout import ExpertTensor
from moeify.pruning.plan import Kept
from moeify.tables import Citation

MERGING = Citation(
    used_for="experts merged into their nearest",
    authors="Li et al.",
    title="Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy",
    arxiv="2310.01334",
)
_ROWS = 1024
"""Neurons that are compared with all others at a time, F x 4 bytes each."""
_TIE = np.float32(1e-6)


def check_merging(mixture: Mixture) -> None:
    """Raise ``CheckpointError`` where experts or routers are quantised."""
    mixture.check_plain("quantised experts cannot be merged", "leave --merge out")
    for layer in mixture.moe_layers:
        mixture.router(layer)  # a quantised one is refused


def merged_pieces(
    mixture: Mixture,
    kept: Kept,
    frequency: Mapping[int, Sequence[float]] | None = None,
    untouched: Mapping[int, Collection[int]] | None = None,
) -> dict[tuple[str, int], Piece]:
    """The pieces of the kept experts that take others in, by tensor and expert.

    Each dropped expert goes to the kept one of its slice whose router row is nearest, and an average weighs
    experts by ``frequency``, evenly where it is None (M-SMoE, arXiv 2310.01334, section 3).
    ``untouched`` experts take nothing in. Raises ``CheckpointError`` for quantised experts.
    """
    pieces: dict[tuple[str, int], Piece] = {}
    with SourceFiles() as files:
        for layer, experts in kept.items():
            open_to = [e for e in experts if e not in (untouched or {}).get(layer, ())]
            counts = None if frequency is None else frequency.get(layer)
            every = _router_rows(mixture, files, layer)
            for number in range(mixture.slices):
                copies = mixture.numbering.of_slice(number)
                inside = [[n for n, e in enumerate(copies) if e in which] for which in (experts, open_to)]
                for expert, others in nearest(every[list(copies)], *inside).items():
                    members = [copies[member] for member in (expert, *others)]
                    pieces |= _merge(mixture, files, layer, members, counts)
    return pieces


def nearest(rows: Float32, kept: Sequence[int], open_to: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """For each of ``open_to`` the experts not in ``kept`` whose centred router rows are nearest."""
    centred = rows - rows.mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(length > 0, length, 1.0)
    groups: dict[int, list[int]] = {}
    for expert in range(len(rows)):
        if expert not in kept and open_to:
            similar = unit[list(open_to)] @ unit[expert]
            groups.setdefault(open_to[int(np.argmax(similar))], []).append(expert)
    return {expert: tuple(others) for expert, others in groups.items()}


def align(reference: Float32, other: Float32) -> Index:
    """The order of ``other``'s neurons [F, D] that matches ``reference``'s [F, D].

    Greedy: the most similar pair first. Repeatedly taking every pair whose two sides prefer each
    other finds the same pairs without sorting F x F similarities. About half of what is left finds
    its pair each time, so similarities are worked out anew, in blocks, and never held.
    """
    order = np.full(len(reference), -1, np.int64)
    rows = columns = np.arange(len(reference))
    while len(rows):
        best, back = _preferred(reference, other, rows, columns)
        mutual = back[best] == np.arange(len(rows))
        order[rows[mutual]] = columns[best[mutual]]
        rows, columns = rows[~mutual], np.delete(columns, best[mutual])
    return order


def _preferred(reference: Float32, other: Float32, rows: Index, columns: Index) -> tuple[Index, Index]:
    """For each of ``rows`` the place of the most similar of ``columns``, and the reverse."""
    best, back = np.empty(len(rows), np.int64), np.zeros(len(columns), np.int64)
    highest = np.full(len(columns), -np.inf, np.float32)
    theirs = (other if len(columns) == len(other) else other[columns]).T
    for start in range(0, len(rows), _ROWS):
        mine = rows[start : start + _ROWS]
        similar = reference[mine] @ theirs
        same = np.minimum(np.searchsorted(columns, mine), len(columns) - 1)
        similar[np.arange(len(mine)), same] += np.where(columns[same] == mine, _TIE, 0)
        best[start : start + len(mine)] = similar.argmax(axis=1)  # ties stay in place
        top = similar.argmax(axis=0)
        value = similar[top, np.arange(len(columns))]
        back = np.where(value > highest, start + top, back)
        highest = np.maximum(highest, value)
    return best, back


def _merge(
    mixture: Mixture, files: SourceFiles, layer: int, members: Sequence[int], counts: Sequence[float] | None
) -> Iterator[tuple[tuple[str, int], Piece]]:
    """Pieces of the first of ``members``, which takes in the others."""
    shares = [1.0 if counts is None else float(counts[expert]) for expert in members]
    total = sum(shares)
    weights = [share / total if total else 1 / len(members) for share in shares]
    orders = _orders(mixture, files, layer, members)
    for spec in mixture.layout.experts:
        shape, axis = _shape(mixture, layer, spec), spec.neuron_axis
        terms: list[tuple[Run, float]] = []
        for expert, weight, order in zip(members, weights, orders, strict=True):
            part = mixture.expert(layer, spec, expert)[0]
            if axis is None or order is None:
                terms.append((part, weight))
            else:
                terms.append((neurons(part, shape, axis, _expanded(spec, order)), weight))
        stored = terms[0][0].tensor
        yield (stored.name, members[0]), Blend(tuple(terms), stored.dtype)


def _orders(mixture: Mixture, files: SourceFiles, layer: int, members: Sequence[int]) -> list[Index | None]:
    """How each member's neurons are ordered like the first one's; None for as they are.

    Two experts are held in float32.
    """
    reference = _neurons(mixture, files, layer, members[0])
    others = (_neurons(mixture, files, layer, expert) for expert in members[1:])
    return [None, *(align(reference, other) for other in others)]


def _neurons(mixture: Mixture, files: SourceFiles, layer: int, expert: int) -> Float32:
    """Everything that belongs to each neuron, side by side, [F, D]."""
    parts = []
    for spec in mixture.layout.experts:
        if spec.neuron_axis is None:
            continue
        values = files.values(mixture.expert(layer, spec, expert)[0])
        rows = np.moveaxis(values.reshape(_shape(mixture, layer, spec)), spec.neuron_axis, 0)
        rows = rows.reshape(len(rows), -1)
        joined = len(spec.roles)
        if spec.interleaved:
            rows = rows.reshape(len(rows) // joined, -1)
        elif joined > 1:
            rows = np.concatenate(np.split(rows, joined), axis=1)
        parts.append(rows)
    neurons = np.concatenate(parts, axis=1)
    if not np.isfinite(neurons).all():
        raise CheckpointError(
            f"expert {expert} of layer {layer} holds NaN or infinity",
            "the checkpoint is damaged or its training diverged; leave --merge out",
            path=mixture.checkpoint.folder,
        )
    return neurons


def _expanded(spec: ExpertTensor, order: Index) -> Index:
    """``order`` of neurons as one of the elements along a tensor's axis of neurons."""
    joined = len(spec.roles)
    if joined == 1:
        return order
    if spec.interleaved:
        both: Index = (joined * order[:, None] + np.arange(joined)).ravel()
        return both
    return np.concatenate([order + number * len(order) for number in range(joined)])


def _shape(mixture: Mixture, layer: int, spec: ExpertTensor) -> tuple[int, ...]:
    stored = mixture.expert(layer, spec, 0)[0].tensor
    return stored.shape[1:] if spec.fused else stored.shape


def _router_rows(mixture: Mixture, files: SourceFiles, layer: int) -> Float32:
    stored = mixture.checkpoint[mixture.router_name(layer)]
    return files.values(whole(stored)).reshape(stored.shape)
