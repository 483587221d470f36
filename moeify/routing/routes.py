"""Sending tokens elsewhere than the routers say: what routing is worth on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.routing.choosing import in_slices
from moeify.routing.loaded import LoadedLayer, Route

if TYPE_CHECKING:
    from torch import Tensor

_KNUTH = 2654435761
_AT_ONCE = 32


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


class TextRoute:
    """A route by what the tokens are: told ``ids`` and which are ``real``, [N], of every batch before it runs."""

    ids: Tensor
    real: Tensor

    def tell(self, ids: Tensor, mask: Tensor) -> None:
        """Take a batch's ``input_ids`` and ``attention_mask``, [B, S]."""
        self.ids, self.real = ids.flatten().long(), mask.flatten().bool()


class HashedTokens(TextRoute):
    """Copies by a hash of the token's number, in every slice and layer another (Hash Layers, arXiv 2106.04426)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """The weights that the router gave to its own choice, for the copies that follow the hashed one."""
        import torch

        ids = self.ids.to(experts.device).unsqueeze(-1)
        slices = torch.arange(layer.slices, device=experts.device)
        mixed = (ids + 7919 * (layer.number + 1) + 104729 * slices + 15485863 * self.seed) * _KNUTH % (1 << 32)
        first = (mixed >> 12).unsqueeze(-1)
        return weights, numbered(layer, (first + _places(layer, experts)) % layer.copies)


class InTurn(TextRoute):
    """Copies dealt out to real tokens one after the other."""

    def __init__(self) -> None:
        self.dealt: dict[int, int] = {}

    def __call__(self, layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """The weights that the router gave to its own choice, for the copies whose turn it is."""
        places, before = _places(layer, experts), self.dealt.get(layer.number, 0)
        real = self.real.to(experts.device)
        turn = (before + real.cumsum(0) - 1).reshape(-1, 1, 1)
        self.dealt[layer.number] = before + int(real.sum())
        chosen = (turn * len(places) + places) % layer.copies
        return weights, numbered(layer, chosen.expand(-1, layer.slices, -1))


class LeastLoaded(TextRoute):
    """Of the 2 m copies that a router likes best those m that have had fewest tokens, counted every 32 tokens."""

    def __init__(self) -> None:
        self.loads: dict[int, Tensor] = {}

    def __call__(self, layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """The weights that the router gave to its own choice, for what is chosen here."""
        import torch

        count = len(_places(layer, experts))
        liked = logits.reshape(len(logits), layer.slices, layer.copies, layer.tied).mean(-1)
        liked = liked.topk(min(2 * count, layer.copies), dim=-1).indices
        real = self.real.to(liked.device)
        loads = self.loads.setdefault(layer.number, torch.zeros(layer.slices, layer.copies, device=liked.device))
        parts = []
        for first in range(0, len(liked), _AT_ONCE):
            some, counted = liked[first : first + _AT_ONCE], real[first : first + _AT_ONCE]
            held = loads.expand(len(some), -1, -1).gather(-1, some)
            order = held.argsort(dim=-1, stable=True)[..., :count].sort(dim=-1).values  # as the router likes them
            parts.append(some.gather(-1, order))
            for number in range(count):
                loads.scatter_add_(1, parts[-1][..., number].T, counted.float().expand(layer.slices, -1))
        return weights, numbered(layer, torch.cat(parts))


def _places(layer: LoadedLayer, experts: Tensor) -> Tensor:
    """0 to m - 1, of the m copies [m] that a token visits of every slice."""
    import torch

    return torch.arange(experts.shape[-1] // layer.slices // layer.tied, device=experts.device)


def numbered(layer: LoadedLayer, copies: Tensor) -> Tensor:
    """The experts [N, K] of a layer that are these ``copies`` [N, G, m], in each of G slices."""
    import torch

    first = torch.arange(layer.slices, device=copies.device).unsqueeze(-1) * layer.copies
    beside = torch.arange(layer.tied, device=copies.device)
    return ((copies + first).unsqueeze(-1) * layer.tied + beside).flatten(-3)
