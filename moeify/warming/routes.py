"""Sending tokens elsewhere than the routers say: what routing is worth on a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeify.families.base import MoeLayout
from moeify.routing.collection import routers

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Route", "all_experts", "choosing_module", "one_expert", "random_experts", "rerouted"]

Route = Callable[[int, "Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""From layer, logits [N, E], weights [N, K] and experts [N, K] to other weights and experts."""


def choosing_module(model: nn.Module, router: nn.Module) -> nn.Module:
    """The module that returns logits, weights and experts.

    It is ``routing`` beside the router in moeify's own classes, the router itself in others.
    """
    for parent in model.modules():
        if any(child is router for child in parent.children()):
            found: nn.Module = getattr(parent, "routing", router)
            return found
    return router


@contextmanager
def rerouted(model: nn.Module, layout: MoeLayout, route: Route | None) -> Iterator[None]:
    """Replace weights and experts in every MoE layer by what ``route`` returns, for a while."""
    handles = []
    try:
        for layer, router in routers(model, layout).items() if route is not None else ():

            def hook(_: Any, args: Any, out: Any, layer: int = layer) -> Any:
                assert route is not None
                weights, experts = route(layer, *out)
                return out[0], weights.to(out[1].dtype), experts

            handles.append(choosing_module(model, router).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_experts(seed: int) -> Route:
    """Experts drawn evenly, with the weights that the router gave to its own choice."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def route(_: int, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        draws = torch.rand(logits.shape, generator=generator)
        return weights, draws.topk(experts.shape[-1], dim=-1).indices.to(experts.device)

    return route


def one_expert(number: int) -> Route:
    """The same expert for every token, with the weights of all K choices together."""

    def route(_: int, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        return weights.sum(-1, keepdim=True), experts[:, :1] * 0 + number

    return route


def all_experts() -> Route:
    """Every expert equally: the function that copies with noise have in common."""
    import torch

    def route(_: int, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        count, total = logits.shape
        chosen = torch.arange(total, device=experts.device).expand(count, total)
        share = weights.sum(-1, keepdim=True) / total
        return share.expand(count, total), chosen

    return route
