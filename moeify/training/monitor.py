"""What routers do while a model is trained: figures among the Trainer's own."""

from __future__ import annotations

import inspect
import logging
from contextlib import ExitStack
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from moeify.errors import ConfigError
from moeify.families.problems import numbers
from moeify.modeling.moe_layers import token_mask
from moeify.routing.collection import real_tokens
from moeify.routing.loaded import LoadedMixture, Routed, mixtures_in
from moeify.routing.statistics import LayerRouting, RoutingStatistics

_LOG = logging.getLogger(__name__)


class RoutingMonitor(TrainerCallback):  # type: ignore[misc]
    """Has a Trainer log how its mixtures route: ``trainer.add_callback(RoutingMonitor(trainer))``.

    In the first step and every ``every`` steps after it looks at what the routers did with the step's tokens, over all
    processes, and has the Trainer log, to wherever it reports, for each layer

    - ``routing/layer_3/max_violation``: MaxVio, 0 even, E / K - 1 collapsed (arXiv 2408.15664);
    - ``routing/layer_3/entropy``: the mean normalised entropy of the router, 1 undecided, 0 certain;
    - ``routing/layer_3/dead``: experts with less than a tenth of the fair share,

    and ``routing/max_violation``, ``routing/entropy`` (means) and ``routing/dead`` (a sum) over the layers. Where a
    module holds several models, ``routing/`` is followed by the path of each. A layer that begins to send nearly all
    tokens to the same experts is named in a warning. Padding is left out by the attention mask of two axes.

    Args:
        trainer: the Trainer, any subclass. Its model may be any mixture that moeify reads, in PEFT's wrapping too.
        every: steps from one look to the next.

    Raises:
        ConfigError: as training begins, where the model holds no mixture.
    """

    def __init__(self, trainer: Trainer, every: int = 50) -> None:
        if every < 1:
            raise ConfigError(f"every must be at least 1 step, not {every}", "leave it out for 50")
        self.trainer, self.every = trainer, every
        self._watches: list[_Watch] = []
        self._collapsed: set[str] = set()
        self._hooks = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the mixtures."""
        self._watches = [_Watch(path, mixture) for path, mixture in mixtures_in(self.trainer.model).items()]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at this step, if it is its turn."""
        if state.global_step % self.every == 0:
            for watch in self._watches:
                watch.start(self._hooks)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log what was seen."""
        if (state.global_step - 1) % self.every:
            return
        self._hooks.close()
        figures: dict[str, float] = {}
        for watch in self._watches:
            _add_up(self.trainer.accelerator, watch.statistics)
            figures |= watch.figures()
            self._warn(watch, state)
        if not figures:
            _LOG.warning("step %d: RoutingMonitor saw no router; compiled code hides them", state.global_step)
            return
        due = control.should_log
        self.trainer.log(figures)
        control.should_log = due  # the Trainer's own figures of this step are still to come

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the model as it was."""
        self._hooks.close()

    def _warn(self, watch: _Watch, state: Any) -> None:
        found = {f"{watch.name}{n}": n for n, layer in watch.statistics.layers.items() if layer.collapsed}
        fresh = [number for key, number in found.items() if key not in self._collapsed]
        here = {key for key in self._collapsed if key.rpartition("/")[0] == watch.name.rpartition("/")[0]}
        self._collapsed = (self._collapsed - here) | set(found)
        if fresh and state.is_world_process_zero:
            layer = watch.statistics.layers[fresh[0]]
            _LOG.warning(
                "step %d: %s%s: nearly all tokens go to the same %d of %d experts (raise router_aux_loss_coef, and see"
                " that output_router_logits is set, or no balance loss is added)",
                state.global_step,
                f"{watch.path}, " if watch.path else "",
                numbers(sorted(fresh), "layer"),
                layer.top_k,
                layer.num_experts,
            )


class _Watch:
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

    def figures(self) -> dict[str, float]:
        """The figures of each layer and of all, by their names in the log."""
        layers = self.statistics.layers
        if not layers:
            return {}
        found = {
            f"{self.name}layer_{number}/{name}": value
            for number, layer in layers.items()
            for name, value in _figures(layer).items()
        }
        return found | {
            f"{self.name}max_violation": self.statistics.max_violation,
            f"{self.name}entropy": self.statistics.entropy,
            f"{self.name}dead": float(sum(len(layer.dead) for layer in layers.values())),
        }


def _figures(layer: LayerRouting) -> dict[str, float]:
    return {"max_violation": layer.max_violation, "entropy": layer.entropy, "dead": float(len(layer.dead))}


def _add_up(accelerator: Any, statistics: RoutingStatistics) -> None:
    """Sums of this process into sums over all of them."""
    if accelerator.num_processes == 1:
        return
    for layer in statistics.layers.values():
        own = torch.tensor([layer.tokens, layer.entropy_sum, *layer.tokens_per_expert], dtype=torch.float64)
        tokens, entropy, *experts = accelerator.reduce(own.to(accelerator.device), "sum").tolist()
        layer.tokens, layer.entropy_sum = int(tokens), entropy
        layer.tokens_per_expert[:] = experts
