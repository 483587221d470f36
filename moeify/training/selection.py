"""Training a part of a model: its routers, its mixtures, or all of it."""

from __future__ import annotations

import warnings
from typing import Any, get_args

from moeify.errors import ConfigError
from moeify.routing.config import Trained
from moeify.routing.loaded import mixtures_in
from moeify.routing.trained import adapters, keep_tied, wanted


def train_only(model: Any, what: Trained) -> list[str]:
    """Let gradients reach a part of ``model`` and nothing else.

    Args:
        model: any model with mixtures of experts in it, also inside PEFT's, DistributedDataParallel's or
            torch.compile's wrappings, and modules that hold several models. Where PEFT wraps a module, its adapter,
            or its copy of ``modules_to_save``, is what is trained.
        what: ``"routers"``, ``"moe"`` (routers and experts) or ``"all"``, which in a PEFT model are its adapters.

    Returns:
        Names of the parameters that are trained. What routers only add for choosing, which has no gradient, is not
        among them.

    Raises:
        ConfigError: where ``what`` is something else, the model holds no mixture, or experts are quantised.
    """
    if what not in get_args(Trained):
        raise ConfigError(f"train_only knows {', '.join(get_args(Trained))}, not {what!r}", 'pass "routers"')
    mixtures = mixtures_in(model, required=what != "all")
    layers = [layer for mixture in mixtures.values() for layer in mixture.layers.values()]
    names = wanted(model, layers, what)
    floating = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if what == "moe" and (packed := sorted(names - floating)):
        raise ConfigError(
            f"{packed[0]} is quantised, which cannot be trained",
            'train "routers", and what adapters reach in attention, or leave the experts unquantised',
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names & floating)
    keep_tied(layers)
    _warn_of_unsaved(model, names)
    return sorted(names & floating)


def _warn_of_unsaved(model: Any, names: set[str]) -> None:
    if not hasattr(model, "peft_config"):
        return
    saved = {id(parameter) for parameter in adapters(model)}
    unsaved = [name for name, p in model.named_parameters() if name in names and id(p) not in saved]
    if unsaved:
        warnings.warn(
            f"PEFT saves adapters and modules_to_save only, so {unsaved[0]} will not be in the adapter's folder"
            ' (give LoraConfig modules_to_save=["router"], or "router" among target_modules).',
            stacklevel=3,
        )
