"""Which parameters of a loaded model are trained: routers, mixtures or all, whatever has wrapped them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from moeify.routing.config import Trained
from moeify.routing.loaded import LoadedLayer

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPED = ("base_layer", "original_module")  # what PEFT calls the module that an adapter or a copy stands for


def wanted(model: nn.Module, layers: Iterable[LoadedLayer], what: Trained) -> set[str]:
    """Names of the parameters of ``model`` that are trained; what is only added for choosing has no gradient.

    Where PEFT wraps a module, its adapter or its copy is trained and what lies beneath is not.
    """
    layers = list(layers)
    choosing = {id(layer.bias) for layer in layers}
    nulls = [layer.nulls for layer in layers if layer.nulls is not None]
    modules: list[Any] = [model] if what == "all" else [part.router for part in (*layers, *nulls)]
    if what == "moe":
        modules += [*(layer.experts for layer in layers), *nulls]
    chosen = {id(parameter) for module in modules for parameter in learnable(module)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen - choosing}


def keep_tied(layers: Iterable[LoadedLayer]) -> None:
    """Let router rows of experts that are one copy in slices learn the same, so that they stay equal."""

    def even(gradient: Tensor, tied: int) -> Tensor:
        mean = gradient.reshape(-1, tied, *gradient.shape[1:]).mean(1)
        return mean.repeat_interleave(tied, dim=0)

    for layer in layers:
        for parameter in learnable(layer.router) if layer.tied > 1 else ():
            if parameter.requires_grad and parameter.shape[:1] == (layer.num_experts,):
                parameter.register_hook(partial(even, tied=layer.tied))  # type: ignore[no-untyped-call]


def learnable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that training a module changes: its adapters where PEFT put any, else all."""
    return list(adapters(module)) or list(module.parameters())


def adapters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of PEFT's active adapters in a module."""
    for wrapper in module.modules():
        if not any(name in wrapper._modules for name in _WRAPPED):
            continue
        active = getattr(wrapper, "active_adapters", ())
        for name, parameter in wrapper.named_parameters():
            path = name.split(".")
            if path[0] not in _WRAPPED and (len(path) < 2 or path[1] in active):
                yield parameter
