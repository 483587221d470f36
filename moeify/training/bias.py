"""Balance without a loss: a bias that chooses experts and does not weigh them (arXiv 2408.15664)."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from moeify.errors import ConfigError
from moeify.routing.biases import shift_biases
from moeify.routing.loaded import LoadedMixture, Routed, mixtures_in
from moeify.training.watching import Watch


class RouterBiasCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps the load of experts even as DeepSeek-V3 does: ``trainer.add_callback(RouterBiasCallback(trainer))``.

    After every step each layer's bias for choosing moves by ``rate`` towards an even load of the step's tokens, of all
    its micro-batches and processes, without padding. It has no gradient and no loss: set ``router_aux_loss_coef`` to 0
    where the model has one. transformers has no class that does this by itself.

    Args:
        trainer: the Trainer, any subclass, of a mixture whose routers have a bias for choosing (DeepSeek-V3, Kimi-K2,
            GLM-4-MoE, dots1, ERNIE 4.5, MiniMax-M2, moeify's own with ``router_bias``, ...), in PEFT's wrapping too.
        rate: u, 0.001 in the paper; scores lie between 0 and 1.

    Raises:
        ConfigError: for a rate that is not above 0; as training begins, where the model has no such routers.
    """

    def __init__(self, trainer: Trainer, rate: float = 1e-3) -> None:
        if not 0 < rate < float("inf"):
            raise ConfigError(f"rate must be above 0, not {rate}", "leave it out for 0.001")
        self.trainer, self.rate = trainer, rate
        self._watches: list[tuple[Watch, dict[int, Tensor]]] = []
        self._hooks = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the routers."""
        mixtures = mixtures_in(self.trainer.model)
        for mixture in mixtures.values():
            check_biased(mixture)
        self._watches = [(Watch(path, mixture), {}) for path, mixture in mixtures.items()]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count what experts get."""
        for watch, counts in self._watches:
            counts.clear()
            watch.start(self._hooks, partial(_add, counts))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the biases."""
        self._hooks.close()
        for watch, counts in self._watches:
            layers = [watch.mixture.layers[number] for number in counts]
            shift_biases(layers, map(self._everywhere, counts.values()), self.rate)

    def _everywhere(self, count: Tensor) -> Tensor:
        """What all processes counted together."""
        accelerator = self.trainer.accelerator
        alone = accelerator.num_processes == 1
        return count if alone else accelerator.reduce(count.to(accelerator.device), "sum")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the model without hooks."""
        self._hooks.close()


def _add(counts: dict[int, Tensor], routed: Routed, mask: Tensor | None) -> None:
    """Add the choices of real tokens to the ``counts`` [E] of a layer, where they lie: nothing waits for a copy."""
    count, experts = routed.logits.shape[-1], routed.experts
    ones = torch.ones_like(experts, dtype=torch.float32)
    if mask is not None:
        ones = ones * (mask != 0).to(ones).unsqueeze(-1)
    # Null experts have the number after the last.
    seen = ones.new_zeros(count + 1).scatter_add_(0, experts.flatten(), ones.flatten())[:count]
    number = routed.layer.number
    counts[number] = seen if number not in counts else counts[number] + seen


def check_biased(mixture: LoadedMixture) -> None:
    """Raise ``ConfigError`` where a layer chooses without a bias."""
    if any(layer.bias is None for layer in mixture.layers.values()):
        raise ConfigError(
            f"the routers of {type(mixture.model).__name__} have no bias that experts are chosen with",
            "balance it by a loss (router_aux_loss_coef), or make one of moeify's own by moeify upcycle --router-bias",
        )
