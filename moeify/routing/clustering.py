"""Balanced spherical k-means, and biases that make the load even."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_KMEANS_ROUNDS = 12
_AUCTION_ROUNDS = 20
_POLISH_ROUNDS = 60
_STEP, _DECAY, _SMALLEST = 0.3, 0.95, 0.003


def balanced_kmeans(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """Unit directions [E, H] of ``clusters`` groups of about equal size among ``rows`` [T, H].

    Similarity is the cosine. Each round assigns by similarity plus a price for each cluster,
    found by ``even_offsets`` with one choice: the dual of the assignment with equal capacities.
    """
    import torch
    from torch.nn.functional import normalize, one_hot

    generator = torch.Generator().manual_seed(seed)
    points = normalize(rows, dim=-1)
    centres = points[torch.randperm(len(points), generator=generator)[:clusters]]
    for _ in range(_KMEANS_ROUNDS):
        similarity = points @ centres.T
        prices = even_offsets(similarity, top_k=1, rounds=_AUCTION_ROUNDS)
        members = one_hot((similarity + prices).argmax(-1), clusters).to(points.dtype)
        sums = members.T @ points
        # A cluster that lost all members keeps its centre and gets a better price next round.
        centres = normalize(torch.where(members.sum(0)[:, None] > 0, sums, centres), dim=-1)
    return centres


def even_offsets(
    logits: Tensor,
    *,
    top_k: int,
    rounds: int = _POLISH_ROUNDS,
    steady: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Biases [E] under which each expert is among the top K of ``logits`` [T, E] equally often.

    The bias of expert e counts ``steady`` [T] times at each token, once where it is None; a token
    counts ``weights`` [T]. Experts above the mean load are lowered and others raised, in shrinking
    steps (the update of arXiv 2408.15664, on a fixed sample); the best biases seen are returned.
    """
    import torch

    size = logits.std().clamp_min(1e-12)
    offsets = logits.new_zeros(logits.shape[1])
    best, smallest, step = offsets, float("inf"), _STEP
    for _ in range(rounds):
        shift = offsets if steady is None else steady[:, None] * offsets
        chosen = (logits + shift).topk(top_k, dim=-1, sorted=False).indices
        counted = None if weights is None else weights.repeat_interleave(top_k)
        load = torch.bincount(chosen.flatten(), counted, minlength=logits.shape[1]).to(logits.dtype)
        excess = load / load.mean() - 1
        if (worst := float(excess.abs().max())) < smallest:
            smallest, best = worst, offsets
        offsets = offsets - step * size * excess
        step = max(step * _DECAY, _SMALLEST)
    return best
