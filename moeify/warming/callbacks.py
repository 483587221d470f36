"""What happens after each step of a warm-up: progress is told, and biases for choosing are moved."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback

from moeify.progress import Stage

if TYPE_CHECKING:
    from moeify.warming.train import RouterTrainer

_STEPS = 20  # that the rate is taken over


class TellProgress(TrainerCallback):  # type: ignore[misc]
    """Tells ``stage`` of each step: its losses, learning rate and tokens a second, of all processes."""

    def __init__(self, trainer: RouterTrainer, stage: Stage, tokens_per_step: int) -> None:
        self.trainer, self.stage, self.tokens_per_step = trainer, stage, tokens_per_step
        self._ended: deque[float] = deque(maxlen=_STEPS + 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ended.append(time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        self._ended.append(time.monotonic())
        figures = {name: self.trainer.losses[-1][name] for name in ("loss", "balance")}
        if lr_scheduler is not None:
            figures["learning rate"] = float(lr_scheduler.get_last_lr()[0])
        seconds = max(self._ended[-1] - self._ended[0], 1e-9)
        figures["tokens/s"] = (len(self._ended) - 1) * self.tokens_per_step / seconds
        self.stage.reach(state.global_step, state.max_steps, figures)


class MoveBiases(TrainerCallback):  # type: ignore[misc]
    """Moves the biases for choosing after each step, where the warm-up balances by them."""

    def __init__(self, trainer: RouterTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.shift_biases()
