"""What the routers of one forward pass must know of the batch, and what they tell the model's outputs.

This file travels inside checkpoints: it imports torch and transformers only.
"""

from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class RoutingBatch:
    """One forward pass, as its routers see it.

    `mask`, `starts` and `cache` are the arguments of `SequencePool`. `logits` collects [N, E] of each MoE layer, and
    is None where nobody asked; `chosen` collects the experts [N, K] beside them. `attention_mask` tells which tokens
    count in losses.

    It is no dataclass: FSDP copies those among a layer's arguments, lists and all, and what a copy collects is lost.
    """

    def __init__(
        self,
        *,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
        cache: Cache | None = None,
        logits: list[Tensor] | None = None,
        chosen: list[Tensor] | None = None,
        attention_mask: Any = None,
    ) -> None:
        self.mask, self.starts, self.cache = mask, starts, cache
        self.logits, self.chosen = logits, [] if chosen is None else chosen
        self.attention_mask = attention_mask


class _Current:
    """The batch of the forward pass that runs here: one for each thread, or, traced, one for each trace.

    Tracing cannot follow a `ContextVar`; what it enters is seen first until it is left, also where a graph breaks.
    """

    def __init__(self) -> None:
        self._own: ContextVar[RoutingBatch | None] = ContextVar("routing_batch", default=None)
        self._traced: list[RoutingBatch] = []

    def get(self) -> RoutingBatch | None:
        """The innermost batch, None outside of all forward passes."""
        if self._traced:
            return self._traced[-1]
        return None if torch.compiler.is_compiling() else self._own.get()

    def enter(self, batch: RoutingBatch) -> Token[RoutingBatch | None] | None:
        """Make `batch` the innermost; returns what `leave` needs."""
        if torch.compiler.is_compiling():
            self._traced.append(batch)
            return None
        return self._own.set(batch)

    def leave(self, token: Token[RoutingBatch | None] | None) -> None:
        """Go back to the batch before."""
        if token is None:
            self._traced.pop()
        else:
            self._own.reset(token)


CURRENT = _Current()
