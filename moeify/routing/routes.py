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
        draws = torch.rand(logits.shape[0], layer.slices, layer.copies, generator=generator)
        chosen = draws.topk(experts.shape[-1] // layer.slices // layer.tied, dim=-1).indices
        return weights, numbered(layer, chosen.to(experts.device))

    return route


def one_expert(number: int) -> Route:
    """The same expert (of every slice) for every token, with the weights of all choices together."""

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        together = in_slices(weights, layer.slices).sum(-1, keepdim=True)
        chosen = experts.new_full(together.shape, number)
        return (together / layer.tied).repeat_interleave(layer.tied, dim=-1).flatten(-2), numbered(layer, chosen)

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


def numbered(layer: LoadedLayer, copies: Tensor) -> Tensor:
    """The experts [N, K] of a layer that are these ``copies`` [N, G, m], in each of G slices."""
    import torch

    first = torch.arange(layer.slices, device=copies.device).unsqueeze(-1) * layer.copies
    beside = torch.arange(layer.tied, device=copies.device)
    return ((copies + first).unsqueeze(-1) * layer.tied + beside).flatten(-3)
