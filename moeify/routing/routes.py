"""Sending tokens elsewhere than the routers say: what routing is worth on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.routing.loaded import Route

if TYPE_CHECKING:
    from torch import Tensor


def random_experts(seed: int) -> Route:
    """Experts drawn evenly, with the weights that the router gave to its own choice."""
    import torch

    # One for each layer: the same draws whether layers run batch by batch or one by one.
    generators: dict[int, torch.Generator] = {}

    def route(layer: int, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        generator = generators.setdefault(layer, torch.Generator().manual_seed((seed << 16) + layer))
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
