"""What the mixtures of a model in training do with its tokens, counted over all processes."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import torch

from moeify.modeling.moe_layers import token_mask
from moeify.routing.collection import real_tokens
from moeify.routing.loaded import LoadedMixture, Routed
from moeify.routing.statistics import RoutingStatistics


class Watch:
    """One mixture and the sums of what its layers did."""

    def __init__(self, path: str, mixture: LoadedMixture) -> None:
        self.path, self.mixture = path, mixture
        self.name = f"routing/{path}/" if path else "routing/"
        self.statistics = RoutingStatistics()
        self._signature = inspect.signature(mixture.model.forward)
        self._mask: Any = None
        self._running = False

    def start(self, hooks: ExitStack) -> None:
        """Count from now on until ``hooks`` close."""
        self.statistics = RoutingStatistics()
        model = self.mixture.model
        hooks.callback(model.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        hooks.callback(model.register_forward_hook(self._leave, always_call=True).remove)
        hooks.enter_context(self.mixture.watched(self._see))

    def _enter(self, _: Any, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        given = self._signature.bind_partial(*args, **words).arguments
        self._mask, self._running = given.get("attention_mask"), True

    def _leave(self, *_: Any) -> None:
        self._running = False

    @torch.no_grad()
    def _see(self, routed: Routed) -> None:
        if not self._running:  # a layer that the backward pass runs a second time
            return
        count = len(routed.logits)
        mask = token_mask(self._mask, count)
        real = torch.ones(count, dtype=torch.bool) if mask is None else mask.bool().cpu()
        self.statistics(real_tokens(routed, real))


def add_up(accelerator: Any, statistics: RoutingStatistics) -> None:
    """Sums of this process into sums over all of them."""
    if accelerator.num_processes == 1:
        return
    for layer in statistics.layers.values():
        own = torch.tensor([layer.tokens, layer.entropy_sum, *layer.tokens_per_expert], dtype=torch.float64)
        tokens, entropy, *experts = accelerator.reduce(own.to(accelerator.device), "sum").tolist()
        layer.tokens, layer.entropy_sum = int(tokens), entropy
        layer.tokens_per_expert[:] = experts
