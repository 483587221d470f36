"""Sending tokens elsewhere than the routers say: what routing is worth on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.routing.choosing import in_slices
from moeify.routing.loaded import LoadedLayer, Route

if TYPE_CHECKING:
    from torch import Tensor


def random_experts(seed: int) -> Route:
    """Experts drawn evenly, with the weights that the router gave to its own choice."""
    import torch

    # One for each layer: the same draws whether layers run batch by batch or one by one.
    generators: dict[int, torch.Generator] = {}

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        number = layer.number
        generator = generators.setdefault(number, torch.Generator().manual_seed((seed << 16) + number))
        draws = in_slices(torch.rand(logits.shape, generator=generator), layer.slices)
        chosen = draws.topk(experts.shape[-1] // layer.slices, dim=-1).indices.to(experts.device)
        return weights, (chosen + _first(logits, layer)).flatten(-2)

    return route


def one_expert(number: int) -> Route:
    """The same expert (of every slice) for every token, with the weights of all choices together."""

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        together = in_slices(weights, layer.slices).sum(-1)
        return together, (_first(logits, layer).T + number).expand_as(together)

    return route


def all_experts() -> Route:
    """Every expert (of every slice) equally: the function that copies with noise have in common."""
    import torch

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        count, total = logits.shape
        chosen = torch.arange(total, device=experts.device).expand(count, total)
        each = total // layer.slices
        share = in_slices(weights, layer.slices).sum(-1, keepdim=True) / each
        return share.expand(count, layer.slices, each).flatten(-2), chosen

    return route


def _first(logits: Tensor, layer: LoadedLayer) -> Tensor:
    """The number of each slice's first expert [G, 1]."""
    import torch

    return torch.arange(0, logits.shape[-1], logits.shape[-1] // layer.slices, device=logits.device).unsqueeze(-1)
