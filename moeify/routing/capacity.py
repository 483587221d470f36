"""What experts with room for a part of a batch would leave out: capacity as Switch and GShard have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from moeify.routing.choosing import in_slices
from moeify.routing.loaded import LoadedLayer
from moeify.routing.routes import TextRoute

if TYPE_CHECKING:
    from torch import Tensor


class Capacity(TextRoute):
    """A route in which every expert takes factor x T K / E assignments of a batch of T real tokens, rounded up.

    First choices come before second ones and early tokens before late ones (GShard, arXiv 2006.16668, algorithm 1).
    What is left out weighs 0, and the weights of a token's other choices, in each slice, are scaled to the sum that
    all had. Where a token has none, only the residual stream is left (Switch, arXiv 2101.03961, section 2.2).
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.seen: dict[int, tuple[int, int]] = {}
        self.lost: dict[int, tuple[int, int]] = {}

    def __call__(self, layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """The same experts, with the weights of what has room."""
        real = self.real.to(experts.device)
        kept = self._kept(experts, real, logits.shape[-1])
        parts, stay = in_slices(weights, layer.slices), in_slices(kept, layer.slices)
        left = (parts * stay).sum(-1, keepdim=True)
        scale = parts.sum(-1, keepdim=True) / left.where(left != 0, left.new_ones(()))
        self._count(layer.number, stay[real], in_slices(experts, layer.slices)[real] < logits.shape[-1])
        return (parts * stay * scale).flatten(-2), experts

    def _kept(self, experts: Tensor, real: Tensor, count: int) -> Tensor:
        """Which assignments [N, K] have room."""
        import torch

        # Exact: 1.1 x 100 / 5 is 22, and in floating point a little more.
        room = math.ceil(Fraction(str(self.factor)) * int(real.sum()) * experts.shape[-1] / count)
        taken, kept = torch.zeros(count + 1, dtype=torch.long, device=experts.device), []
        for chosen in experts.unbind(-1):
            visits = torch.nn.functional.one_hot(chosen, count + 1) * real.unsqueeze(-1)
            place = (visits.cumsum(0) - visits).gather(1, chosen.unsqueeze(-1)).squeeze(-1) + taken[chosen]
            kept.append((place < room) & (chosen < count))  # null experts, numbered E, need no room
            taken += visits.sum(0)
        return torch.stack(kept, dim=-1)

    def _count(self, number: int, stay: Tensor, asked: Tensor) -> None:
        tokens, assignments = self.lost.get(number, (0, 0))
        self.lost[number] = tokens + int((~stay.any(-1)).any(-1).sum()), assignments + int((asked & ~stay).sum())
        tokens, assignments = self.seen.get(number, (0, 0))
        self.seen[number] = tokens + len(stay), assignments + int(asked.sum())

    def dropped(self) -> Mapping[int, tuple[float, float]]:
        """By layer the share of tokens, and of their assignments, that found no room."""
        return {
            number: (tokens / max(self.seen[number][0], 1), assignments / max(self.seen[number][1], 1))
            for number, (tokens, assignments) in sorted(self.lost.items())
        }
