"""Losses that keep routers balanced and their logits small, from sums over the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moeify.routing.choosing import in_slices, visits
from moeify.routing.loaded import Routed


@dataclass(frozen=True, kw_only=True)
class RouterSums:
    """Sums over tokens for L layers.

    ``counts`` [L, E] are assignments over all K choices, ``probabilities`` [L, E] the rule's
    scores, each token's scaled to sum to 1 (arXiv 2412.19437 equations 17-20), ``gates`` [L, E] the
    weights that the model gave to the chosen, ``z`` [L] logsumexp^2 (the mean of slices), ``nulls`` [L] the
    probability of all null experts, all but the counts with gradients; ``tokens`` is a scalar. ``counted`` are the
    tokens that ``counts`` cover, more than ``tokens`` where earlier micro-batches of a step are counted along
    (arXiv 2501.11873).
    """

    counts: Tensor
    probabilities: Tensor
    gates: Tensor
    z: Tensor
    nulls: Tensor
    tokens: Tensor
    counted: Tensor

    def with_earlier(self, earlier: tuple[Tensor, Tensor] | None) -> RouterSums:
        """The sums with counts and counted tokens of earlier micro-batches added."""
        if earlier is None:
            return self
        return replace(self, counts=self.counts + earlier[0], counted=self.counted + earlier[1])

    def packed(self) -> Tensor:
        """All sums as one vector, for one reduction over processes."""
        parts = (self.counts, self.probabilities, self.gates, self.z, self.nulls, self.tokens)
        return torch.cat([part.flatten() for part in parts])

    @classmethod
    def unpacked(cls, vector: Tensor, layers: int, num_experts: int) -> RouterSums:
        """What ``packed`` made."""
        size = layers * num_experts
        counts, probabilities, gates, z, nulls, tokens = torch.split(vector, [size, size, size, layers, layers, 1])
        shape = (layers, num_experts)
        return cls(
            counts=counts.view(shape),
            probabilities=probabilities.view(shape),
            gates=gates.view(shape),
            z=z,
            nulls=nulls,
            tokens=tokens[0],
            counted=tokens[0].detach(),
        )


def router_sums(routed: Sequence[Routed], mask: Tensor) -> RouterSums:
    """Sums over the tokens that ``mask`` [N] keeps, of what each layer did with them."""
    counts, probabilities, gates, z, nulls = [], [], [], [], []
    real = mask.flatten().bool()
    for one in routed:
        kept, experts = one.logits.float()[real], one.experts[real]
        count = kept.shape[-1]
        counts.append(visits(experts, torch.ones_like(experts, dtype=kept.dtype), count).sum(0))
        gates.append(visits(experts, one.weights.float()[real], count).sum(0))
        probabilities.append(one.layer.probabilities(kept).sum(0))
        every = kept if one.null_logits is None else torch.cat([kept, one.null_logits.float()[real]], -1)
        z.append(in_slices(every, one.layer.slices).logsumexp(-1).square().mean(-1).sum())
        nulls.append(every.softmax(-1)[:, count:].sum())
    tokens = real.sum().float()
    return RouterSums(
        counts=torch.stack(counts).detach(),
        probabilities=torch.stack(probabilities),
        gates=torch.stack(gates),
        z=torch.stack(z),
        nulls=torch.stack(nulls),
        tokens=tokens,
        counted=tokens,
    )


def null_loss(sums: RouterSums, top_k: int, rate: float) -> Tensor:
    """(f - R) P, averaged over layers: it vanishes where the share f of null choices is R = ``rate``.

    f counts the K - 1 choices of each token that may be null ones and has no gradient, as the load in Switch
    Transformer's balance loss (arXiv 2101.03961 equation 4); P is the mean probability of all null experts.
    """
    free = (sums.counted * (top_k - 1)).clamp(min=1)
    share = (sums.counted * top_k - sums.counts.sum(-1)) / free
    return ((share - rate).detach() * sums.nulls / sums.tokens.clamp(min=1)).mean()


def z_loss(sums: RouterSums) -> Tensor:
    """Mean over tokens and slices of logsumexp(logits)^2, averaged over layers (arXiv 2202.08906 eq. 5)."""
    return (sums.z / sums.tokens.clamp(min=1)).mean()
