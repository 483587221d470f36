"""Sending tokens elsewhere than the routers say: what routing is worth on a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeify.routing.loaded import LoadedLayer, LoadedMixture

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Route", "all_experts", "one_expert", "random_experts", "rerouted"]

Route = Callable[[int, "Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""From layer, logits [N, E], weights [N, K] and experts [N, K] to other weights and experts."""


@contextmanager
def rerouted(mixture: LoadedMixture, route: Route) -> Iterator[None]:
    """Replace weights and experts in every MoE layer by what ``route`` returns, for a while."""
    handles = []
    try:
        for layer in mixture.layers.values():

            def hook(_: Any, args: Any, out: Any, layer: LoadedLayer = layer) -> Any:
                return layer.answer(out, *route(layer.number, *layer.read(out)))

            handles.append(layer.chooser.register_forward_hook(hook))
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
