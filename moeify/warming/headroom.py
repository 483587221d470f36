"""What routing can be worth: how much experts differ, and the loss under other routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.families.base import MoeLayout
from moeify.routing.collection import InputReservoir, routers
from moeify.warming.objective import Examples, Objective, evaluate
from moeify.warming.routes import one_expert, random_experts

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Headroom", "expert_difference", "measure_headroom"]

IDENTICAL = 1e-6
"""Experts whose outputs differ relatively by less than this are one function, up to rounding."""
_MOST_STATIC = 16


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """How much routing could change the loss on the held-out text, before training.

    ``expert_difference`` is the root mean square over tokens, layers and experts of the distance
    between an expert's output and the experts' mean, relative to the mean's norm. Losses are None
    where experts are identical, because routing cannot change them then. ``loss_static`` is that
    of the best single expert (number ``static_expert``) for all tokens and layers.
    """

    experts_identical: bool
    expert_difference: float
    loss_learned: float | None = None
    loss_random: float | None = None
    loss_static: float | None = None
    static_expert: int | None = None


def measure_headroom(
    model: nn.Module, objective: Objective, examples: Examples, batch_size: int,
    inputs: InputReservoir, *, learned: float, seed: int,
) -> Headroom:  # fmt: skip
    """Measure ``Headroom``; ``learned`` is the loss under the routers as they are."""
    difference = expert_difference(model, objective.layout, inputs)
    if difference < IDENTICAL:
        return Headroom(experts_identical=True, expert_difference=difference)
    num_experts = objective.layout.num_experts(model.config.to_dict())  # type: ignore[operator, union-attr]
    static = {
        expert: evaluate(model, objective, examples, batch_size, one_expert(expert))
        for expert in range(min(num_experts, _MOST_STATIC))
    }
    best = min(static, key=lambda expert: static[expert])
    return Headroom(
        experts_identical=False,
        expert_difference=difference,
        loss_learned=learned,
        loss_random=evaluate(model, objective, examples, batch_size, random_experts(seed)),
        loss_static=static[best],
        static_expert=best,
    )


def expert_difference(model: nn.Module, layout: MoeLayout, inputs: InputReservoir) -> float:
    """Relative distance of the experts' outputs from their mean, over layers and sampled tokens."""
    import torch

    ratios = []
    with torch.no_grad():
        for layer, router in routers(model, layout).items():
            experts = _experts_beside(model, router)
            first = next(experts.parameters())
            tokens = inputs.expert_inputs(layer).to(device=first.device, dtype=first.dtype)
            outputs = torch.stack(
                [_one(experts, tokens, number) for number in range(len(first))]
            ).float()
            mean = outputs.mean(0)
            spread = (outputs - mean).square().sum(-1).mean()
            ratios.append(spread / mean.square().sum(-1).mean().clamp_min(1e-30))
    return float(torch.stack(ratios).mean().sqrt())


def _one(experts: nn.Module, tokens: Tensor, number: int) -> Tensor:
    """Outputs [T, H] of one expert for all ``tokens``."""
    import torch

    chosen = torch.full((len(tokens), 1), number, device=tokens.device)
    result: Tensor = experts(tokens, chosen, tokens.new_ones(len(tokens), 1))
    return result


def _experts_beside(model: nn.Module, router: nn.Module) -> nn.Module:
    for parent in model.modules():
        if any(child is router for child in parent.children()):
            experts: nn.Module = parent.experts  # type: ignore[assignment]
            return experts
    raise LookupError("the router is no part of the model")
