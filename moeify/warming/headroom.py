"""What routing can be worth: how much experts differ, and the loss under other routes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.routing.alternatives import Alternatives
from moeify.routing.held_out import BlockLosses
from moeify.routing.loaded import LoadedLayer
from moeify.warming.session import Session

if TYPE_CHECKING:
    from torch import Tensor

IDENTICAL = 1e-6
"""Experts whose outputs differ relatively by less than this are one function, up to rounding."""


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """How much routing could change the loss on the held-out text, before training.

    ``expert_difference`` is the root mean square over tokens, layers and experts of the distance
    between an expert's output and the experts' mean, relative to the mean's norm. Losses are None
    where experts are identical, because routing cannot change them then. ``loss_static`` is that
    of the best single expert (number ``static_expert``, of every slice) for all tokens and layers: experts are
    compared on 1,024 of the tokens, and what the best one is worse by there is added to
    ``loss_learned``. Errors are standard errors over blocks of the held-out text.
    """

    experts_identical: bool
    expert_difference: float
    loss_learned: float | None = None
    loss_random: float | None = None
    loss_static: float | None = None
    static_expert: int | None = None
    learned_error: float | None = None
    random_error: float | None = None
    static_error: float | None = None


def measure_headroom(session: Session, difference: float, learned: BlockLosses) -> tuple[Headroom, BlockLosses]:
    """Measure ``Headroom``, and the losses under random routing.

    ``learned`` are those under the routers as they are, which identical experts have under any.
    """
    if difference < IDENTICAL:
        return Headroom(experts_identical=True, expert_difference=difference), learned
    others = Alternatives(
        rules=("random", "static"),
        copies=session.view.numbering.copies,
        blocks=session.held_out,
        seed=session.config.seed,
    )
    rules = others.losses(learned, session.read(*others.readings()))
    random, static = rules["random"].losses, rules["static"]
    loss, chance = learned.estimate(), random.estimate()
    errors = (loss.error, static.above.error)
    found = Headroom(
        experts_identical=False,
        expert_difference=difference,
        loss_learned=loss.value,
        loss_random=chance.value,
        loss_static=loss.value + static.above.value,
        static_expert=static.expert,
        learned_error=loss.error,
        random_error=chance.error,
        static_error=None if None in errors else math.hypot(*filter(None, errors)),
    )
    return found, random


def expert_difference(layer: LoadedLayer, tokens: Tensor) -> float:
    """Mean square distance of a layer's experts from their slice's mean, relative to the mean's square.

    It is over outputs for ``tokens`` [T, H].
    """
    import torch

    outputs = torch.stack([layer.expert(n, tokens) for n in range(layer.num_experts)]).float()
    outputs = outputs.reshape(layer.slices, layer.copies, layer.tied, *outputs.shape[1:])
    mean = outputs.mean(1, keepdim=True)
    spread = (outputs - mean).square().sum(-1)
    return float(spread.mean() / mean.square().sum(-1).mean().clamp_min(1e-30))
