"""How a bias that experts are chosen with keeps their load even (arXiv 2408.15664)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from moeify.routing.loaded import LoadedLayer


@torch.no_grad()
def shift_biases(layers: Iterable[LoadedLayer], counts: Iterable[Tensor], rate: float) -> None:
    """Add ``rate`` to the bias of each expert with less than the mean load, and take it from one with more.

    b_i <- b_i + u sign(mean(c) - c_i) (arXiv 2408.15664, algorithm 1), for each layer by itself.

    Args:
        layers: the layers, which have such a bias.
        counts: for each of them [E], the choices that fell on each expert.
        rate: u.
    """
    for layer, count in zip(layers, counts, strict=True):
        assert layer.bias is not None, "checked before"
        count = count.to(layer.bias.device, torch.float32)
        layer.bias.data.add_((rate * (count.mean() - count).sign()).view_as(layer.bias).to(layer.bias.dtype))
