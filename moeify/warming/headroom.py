"""What routing can be worth: how much experts differ, and the loss under other routes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeify.routing.collection import InputReservoir
from moeify.routing.loaded import LoadedMixture
from moeify.warming.measuring import BlockLosses
from moeify.warming.routes import one_expert, random_experts
from moeify.warming.session import Session

__all__ = ["Headroom", "expert_difference", "measure_headroom"]

IDENTICAL = 1e-6
"""Experts whose outputs differ relatively by less than this are one function, up to rounding."""
_MOST_STATIC = 16
_STATIC_TOKENS = 1024
"""Held-out tokens that single experts are compared on: all of them cost a pass together."""


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """How much routing could change the loss on the held-out text, before training.

    ``expert_difference`` is the root mean square over tokens, layers and experts of the distance
    between an expert's output and the experts' mean, relative to the mean's norm. Losses are None
    where experts are identical, because routing cannot change them then. ``loss_static`` is that
    of the best single expert (number ``static_expert``) for all tokens and layers: experts are
    compared on 1,024 of the tokens, and what the best one is worse by there is added to
    ``loss_learned``.
    """

    experts_identical: bool
    expert_difference: float
    loss_learned: float | None = None
    loss_random: float | None = None
    loss_static: float | None = None
    static_expert: int | None = None


def measure_headroom(session: Session, difference: float, learned: BlockLosses) -> Headroom:
    """Measure ``Headroom``; ``learned`` are the losses under the routers as they are."""
    if difference < IDENTICAL:
        return Headroom(experts_identical=True, expert_difference=difference)
    count = max(1, min(len(learned.sums), _STATIC_TOKENS // session.held_out.seq_len))
    part = np.linspace(0, len(learned.sums) - 1, count).round().astype(int)

    def gain(expert: int) -> float:
        static = session.losses(session.model, route=one_expert(expert), rows=part)
        return static.mean() - learned.mean(part)

    gains = [gain(expert) for expert in range(min(session.view.num_experts, _MOST_STATIC))]
    best = int(np.argmin(gains))
    random = session.losses(session.model, route=random_experts(session.config.seed))
    return Headroom(
        experts_identical=False,
        expert_difference=difference,
        loss_learned=learned.mean(),
        loss_random=random.mean(),
        loss_static=learned.mean() + gains[best],
        static_expert=best,
    )


def expert_difference(mixture: LoadedMixture, inputs: InputReservoir) -> float:
    """Relative distance of the experts' outputs from their mean, over layers and sampled tokens."""
    import torch

    ratios = []
    with torch.no_grad():
        for number, layer in mixture.layers.items():
            tokens, every = inputs.expert_inputs(number), range(layer.num_experts)
            outputs = torch.stack([layer.expert(n, tokens) for n in every]).float()
            mean = outputs.mean(0)
            spread = (outputs - mean).square().sum(-1).mean()
            ratios.append(spread / mean.square().sum(-1).mean().clamp_min(1e-30))
    return float(torch.stack(ratios).mean().sqrt())
