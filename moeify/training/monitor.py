"""What routers do while a model is trained: figures among the Trainer's own."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from moeify.errors import ConfigError
from moeify.families.problems import numbers
from moeify.routing.collection import real_tokens
from moeify.routing.loaded import Routed, mixtures_in
from moeify.routing.statistics import LayerRouting, RoutingStatistics
from moeify.training.watching import See, Watch

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
        self._watches: list[tuple[Watch, RoutingStatistics]] = []
        self._collapsed: set[str] = set()
        self._hooks = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the mixtures."""
        mixtures = mixtures_in(self.trainer.model)
        self._watches = [(Watch(path, mixture), RoutingStatistics()) for path, mixture in mixtures.items()]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at this step, if it is its turn."""
        if state.global_step % self.every == 0:
            for watch, statistics in self._watches:
                statistics.layers.clear()
                watch.start(self._hooks, _counted_in(statistics))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log what was seen."""
        if (state.global_step - 1) % self.every:
            return
        self._hooks.close()
        figures: dict[str, float] = {}
        for watch, statistics in self._watches:
            _add_up(self.trainer.accelerator, statistics)
            figures |= _figures(watch.name, statistics)
            self._warn(watch, statistics, state)
        if not figures:
            _LOG.warning("step %d: RoutingMonitor saw no router; compiled code hides them", state.global_step)
            return
        due = control.should_log
        self.trainer.log(figures)
        control.should_log = due  # the Trainer's own figures of this step are still to come

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the model as it was."""
        self._hooks.close()

    def _warn(self, watch: Watch, statistics: RoutingStatistics, state: Any) -> None:
        found = {f"{watch.name}{n}": n for n, layer in statistics.layers.items() if layer.collapsed}
        fresh = [number for key, number in found.items() if key not in self._collapsed]
        here = {key for key in self._collapsed if key.rpartition("/")[0] == watch.name.rpartition("/")[0]}
        self._collapsed = (self._collapsed - here) | set(found)
        if fresh and state.is_world_process_zero:
            layer = statistics.layers[fresh[0]]
            _LOG.warning(
                "step %d: %s%s: nearly all tokens go to the same %d of %d experts (raise router_aux_loss_coef, and see"
                " that output_router_logits is set, or no balance loss is added)",
                state.global_step,
                f"{watch.path}, " if watch.path else "",
                numbers(sorted(fresh), "layer"),
                layer.top_k,
                layer.num_experts,
            )


def _counted_in(statistics: RoutingStatistics) -> See:
    """Adds the real tokens of a layer to the statistics."""

    def see(routed: Routed, mask: Tensor | None) -> None:
        real = torch.ones(len(routed.logits), dtype=torch.bool) if mask is None else mask.bool().cpu()
        statistics(real_tokens(routed, real))

    return see


def _add_up(accelerator: Any, statistics: RoutingStatistics) -> None:
    """Sums of this process into sums over all of them."""
    if accelerator.num_processes == 1:
        return
    for layer in statistics.layers.values():
        own = torch.tensor([layer.tokens, layer.entropy_sum, *layer.tokens_per_expert], dtype=torch.float64)
        tokens, entropy, *experts = accelerator.reduce(own.to(accelerator.device), "sum").tolist()
        layer.tokens, layer.entropy_sum = int(tokens), entropy
        layer.tokens_per_expert[:] = experts


def _figures(name: str, statistics: RoutingStatistics) -> dict[str, float]:
    """The figures of each layer and of all, by their names in the log."""
    layers = statistics.layers
    if not layers:
        return {}
    found = {
        f"{name}layer_{number}/{figure}": value
        for number, layer in layers.items()
        for figure, value in _of_layer(layer).items()
    }
    return found | {
        f"{name}max_violation": statistics.max_violation,
        f"{name}entropy": statistics.entropy,
        f"{name}dead": float(sum(len(layer.dead) for layer in layers.values())),
    }


def _of_layer(layer: LayerRouting) -> dict[str, float]:
    return {"max_violation": layer.max_violation, "entropy": layer.entropy, "dead": float(len(layer.dead))}
