"""What training holds of a forward pass: as much as there is room for, the rest is made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from moeify.families.moe_layout import MoeLayout
from moeify.routing.loaded import layer_stack, replaced
from moeify.routing.memory import GROWN, available_memory, give_back

_LEAST_ROOM = 1 << 29
"""Activations that are held whatever the size of the model."""


@contextmanager
def bound_activations(model: nn.Module, layout: MoeLayout, room: int) -> Iterator[None]:
    """A while in which layers hold ``room`` bytes for the backward pass; those after run a second time.

    A layer that runs again is a batch that stays whole: micro-batches, whose balance loss knows
    the load of those before only, would train otherwise.
    """
    held = _Held(model, room)
    with ExitStack() as undone:
        for number, layer in enumerate(layer_stack(model, layout.layer).children()):
            undone.enter_context(replaced(layer, partial(held.run, number, _tidily(layer.forward))))
        yield


def room_for_activations(model: nn.Module) -> int:
    """Half as many bytes as the weights have, 512 MiB at least, and no more than half of what is free.

    An accelerator has nothing else to do with what is free.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    room = max(_LEAST_ROOM, sum(parameter.nbytes for parameter in model.parameters()) // 2)
    free = available_memory()
    return room if free is None else min(room, free // 2)


class _Held:
    """Counts what autograd keeps of the layers that have run, weights and repeats left out."""

    def __init__(self, model: nn.Module, room: int) -> None:
        self.model, self.room, self.nbytes = model, room, 0
        self._counted: set[int] = set()

    def run(self, number: int, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a layer, whose activations are kept while there is room for them."""
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        if number == 0:
            self.nbytes = 0
            self._counted = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        if self.nbytes >= self.room:
            return checkpoint(forward, *args, use_reentrant=False, **options)
        with saved_tensors_hooks(self._count, _same):
            return forward(*args, **options)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._counted:
            self._counted.add(storage.data_ptr())
            self.nbytes += storage.nbytes()
        return tensor.detach()  # itself, it would hold the step that it is a result of


def _tidily(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, before which freed memory goes back where more than ``GROWN`` bytes were taken."""

    def run(*args: Any, **options: Any) -> Any:
        give_back(GROWN)
        return forward(*args, **options)

    return run


def _same(tensor: Tensor) -> Tensor:
    return tensor
