"""What the mixtures of a model in training do with its tokens, counted over all processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from moeify.modeling.moe_layers import token_mask
from moeify.routing.loaded import LoadedMixture, Routed

See = Callable[[Routed, Tensor | None], None]
"""Is shown what a layer did, and which of its tokens are real [N], None for all."""


class Watch:
    """One mixture, as it runs in a step of a training."""

    def __init__(self, path: str, mixture: LoadedMixture) -> None:
        self.path, self.mixture = path, mixture
        self.name = f"routing/{path}/" if path else "routing/"
        self._signature = inspect.signature(mixture.model.forward)
        self._mask: Any = None
        self._running = False

    def start(self, hooks: ExitStack, see: See) -> None:
        """Show ``see`` every layer from now on until ``hooks`` close."""
        model = self.mixture.model

        @torch.no_grad()
        def show(routed: Routed) -> None:
            if self._running:  # else a layer that the backward pass runs a second time
                see(routed, token_mask(self._mask, len(routed.logits)))

        hooks.callback(model.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        hooks.callback(model.register_forward_hook(self._leave, always_call=True).remove)
        hooks.enter_context(self.mixture.watched(show))

    def _enter(self, _: Any, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        given = self._signature.bind_partial(*args, **words).arguments
        self._mask, self._running = given.get("attention_mask"), True

    def _leave(self, *_: Any) -> None:
        self._running = False
