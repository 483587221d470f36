"""The loss of a model on text that nothing was fitted to: one loss, whoever reports it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.reader import Checkpoint
from moeify.families.moe_layout import MoeLayout
from moeify.families.registry import known_dense, moe_layout
from moeify.progress import Stage
from moeify.routing.collection import Observer, observed
from moeify.routing.examples import Examples, next_labels
from moeify.routing.head import IGNORED, headless, token_losses
from moeify.routing.loaded import LoadedMixture, Route
from moeify.routing.passes import Pass, Passes, device_of, passes_over, walking
from moeify.routing.routes import TextRoute, all_experts

if TYPE_CHECKING:
    from torch import Tensor, nn

Hidden = dict[int, "Tensor"]
"""Last hidden states [S, H] of blocks by number."""


_CLEARLY = 2.0
"""Standard errors that a difference has to exceed before it is called one: about 95 % of chance stays below."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A loss, or how far one is above another, with its standard error over blocks.

    ``error`` is None where there is one block only.
    """

    value: float
    error: float | None

    @property
    def above_zero(self) -> bool:
        """Whether it is above zero by more than chance makes it."""
        return self.error is not None and self.value > _CLEARLY * self.error


@dataclass(frozen=True, kw_only=True)
class BlockLosses:
    """Of each of N blocks the losses summed, ``sums`` [N], over its ``labels`` [N]."""

    sums: NDArray[np.float64]
    labels: NDArray[np.float64]

    def at(self, rows: NDArray[np.intp]) -> BlockLosses:
        """Those of the blocks at ``rows``."""
        return BlockLosses(sums=self.sums[rows], labels=self.labels[rows])

    def mean(self) -> float:
        """The loss for a label."""
        return float(self.sums.sum() / max(self.labels.sum(), 1.0))

    def estimate(self) -> Estimate:
        """``mean`` with its standard error, of a ratio of sums over blocks (Cochran 1977, equation 6.13)."""
        mean, count = self.mean(), len(self.sums)
        if count < 2:
            return Estimate(value=mean, error=None)
        squares = np.square(self.sums - mean * self.labels).sum() * count / (count - 1)
        return Estimate(value=mean, error=float(np.sqrt(squares)) / max(float(self.labels.sum()), 1.0))

    def above(self, other: BlockLosses) -> Estimate:
        """How far the losses are above ``other``'s on the same labels.

        Blocks are compared one by one, so that what makes a block hard for both is no error.
        """
        return BlockLosses(sums=self.sums - other.sums, labels=self.labels).estimate()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to take the text through a mixture.

    Tokens go where ``route`` says, or the routers; ``observe`` is shown where. Of the blocks those
    with the numbers ``rows`` are read, in their order, or all.
    """

    route: Route | None = None
    observe: Observer | None = None
    rows: NDArray[np.intp] | None = None


def read_held_out(
    passes: Passes,
    layout: MoeLayout | None,
    examples: Examples,
    readings: Iterable[Reading],
    *,
    batch_size: int,
    goals: Hidden | None = None,
) -> list[BlockLosses]:
    """The losses of ``examples`` in every one of ``readings``, all in one walk over ``passes``.

    ``layout`` is None for a dense model, which has no routes. With the loss ``distill`` passes run
    no head, and last hidden states are compared with ``goals``, or with what all experts have in
    common. The masked loss hides tokens: routing is observed on the text as it is, in a reading of
    its own.
    """
    readings, kept = list(readings), Hidden() if goals is None else goals
    runs = [_Run(examples, reading, layout, kept) for reading in readings]
    first: list[_Run] = []
    if examples.loss == "distill" and goals is None:
        common = Reading(route=all_experts(), rows=_rows_of(readings))
        first = [_Run(examples, common, layout, kept, gives="goals")]
    elif examples.loss == "masked":
        plain = (reading for reading in readings if reading.observe is not None)
        first = [_Run(examples, reading, layout, kept, gives="routing") for reading in plain]
    _walk(passes, [*first, *runs], batch_size)
    return [run.losses() for run in runs]


def losses_on(
    checkpoint: Checkpoint,
    examples: Examples,
    *,
    batch_size: int,
    low_memory: bool | None,
    scratch: Path,
    goals: Hidden | None = None,
) -> BlockLosses:
    """The losses of a checkpoint, dense or a mixture, on ``examples``.

    ``scratch`` is a folder for what layers give, where they run one by one; ``goals`` are those of ``read_held_out``.
    """
    layout = known_dense(checkpoint.config) or moe_layout(checkpoint.config, checkpoint.tensors)
    head = examples.loss != "distill"
    with passes_over(checkpoint, layout, low_memory=low_memory, scratch=scratch, head=head) as passes:
        (losses,) = read_held_out(passes, None, examples, [Reading()], batch_size=batch_size, goals=goals)
    return losses


def hidden_states(passes: Passes, examples: Examples, batch_size: int) -> Hidden:
    """Last hidden states of all blocks; the model runs without its head."""
    kept = Hidden()
    _walk(passes, [_Run(examples, Reading(), None, kept, gives="goals")], batch_size)
    return kept


def predictions(model: nn.Module, loss: str, labels: Tensor, run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """The loss of every token, 0 where it has no label, and which have one; both [B, S].

    ``run`` runs ``model`` and returns what it gives.
    """
    labels = next_labels(labels) if loss == "causal" else labels

    def logits() -> Tensor:
        out = run()
        found: Tensor = out["prediction_logits" if "prediction_logits" in out else "logits"]
        return found

    return token_losses(model, labels, logits), labels != IGNORED


def distances(found: Tensor, goal: Tensor, real: Tensor) -> Tensor:
    """Squared distance of hidden states from ``goal``, relative to its square, by token [B, S]."""
    found, goal = found.float(), goal.float()
    distance = (found - goal)[real].square().sum(-1) / goal[real].square().sum(-1)
    return distance.new_zeros(real.shape).masked_scatter(real, distance)


def _rows_of(readings: Sequence[Reading]) -> NDArray[np.intp] | None:
    """The blocks that any of ``readings`` reads."""
    rows = [reading.rows for reading in readings if reading.rows is not None]
    return np.unique(np.concatenate(rows)) if len(rows) == len(readings) else None


def _walk(passes: Passes, runs: Sequence[_Run], batch_size: int) -> None:
    import torch

    passes.check_room(sum(run.tokens for run in runs))
    with walking("measuring the loss", passes, sum(run.blocks for run in runs)) as walk:
        for place in range(len(passes)):
            with torch.no_grad(), passes.opened(place) as step:
                number, training = 0, step.model.training
                step.model.eval()
                for run in runs:
                    number += run.walk(step, number, batch_size, walk, last=place == len(passes) - 1)
                step.model.train(training)


@dataclass
class _Run:
    """A reading and what it gives: losses, goals to compare with, or where tokens go."""

    examples: Examples
    reading: Reading
    layout: MoeLayout | None
    goals: Hidden
    gives: str = "losses"
    sums: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def losses(self) -> BlockLosses:
        import torch

        return BlockLosses(sums=torch.cat(self.sums).numpy(), labels=torch.cat(self.labels).numpy())

    @property
    def tokens(self) -> int:
        """Tokens that it takes through every pass."""
        return self.blocks * self.examples.blocks.seq_len

    @property
    def blocks(self) -> int:
        """Blocks that it takes through every pass."""
        return len(self._rows)

    @property
    def _rows(self) -> NDArray[np.intp]:
        return np.arange(len(self.examples)) if self.reading.rows is None else self.reading.rows

    def walk(self, step: Pass, first: int, batch_size: int, walked: Stage, *, last: bool) -> int:
        """Take the batches through one pass, numbered from ``first``; returns how many."""
        rows = self._rows
        starts = range(0, len(rows), batch_size)
        with ExitStack() as around:
            expect = self._around(step, around)
            for number, start in enumerate(starts, first):
                numbers = rows[start : start + batch_size].tolist()
                batch = self.examples.batch(numbers)
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                part = self.examples.blocks.take(numbers)
                if self.gives == "routing":
                    inputs = part.inputs()
                if isinstance(self.reading.route, TextRoute):
                    self.reading.route.tell(inputs["input_ids"], inputs["attention_mask"])
                if expect is not None:
                    expect(inputs["attention_mask"], part)
                if self.gives == "routing" or not last:
                    step.run(number, inputs)
                else:
                    self._keep(step, number, numbers, batch, inputs)
                walked.advance(len(numbers))
        return len(starts)

    def _around(self, step: Pass, around: ExitStack) -> Callable[..., None] | None:
        """Have the model route as the reading says while ``around`` lasts."""
        reading, observes = self.reading, self.reading.observe is not None
        if self.gives == "losses" and self.examples.loss == "masked":
            observes = False
        if self.gives == "routing":
            around.enter_context(headless(step.model))
        if self.layout is None or not (reading.route or observes):
            return None
        mixture = LoadedMixture(step.model, self.layout)
        if reading.route is not None:
            around.enter_context(mixture.rerouted(reading.route))
        if reading.observe is None or not observes:
            return None
        return around.enter_context(observed(mixture, reading.observe))

    def _keep(
        self, step: Pass, number: int, numbers: list[int], batch: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> None:
        import torch

        def run() -> Any:
            return step.run(number, inputs)

        if self.gives == "goals":
            self.goals.update(zip(numbers, run()[0].detach().cpu(), strict=True))
            return
        device = device_of(step.model)
        if self.examples.loss == "distill":
            labelled = batch["attention_mask"].bool().to(device)
            goal = torch.stack([self.goals[n] for n in numbers]).to(device)
            losses = distances(run()[0], goal, labelled)
        else:
            losses, labelled = predictions(step.model, self.examples.loss, batch["labels"].to(device), run)
        self.sums.append(losses.double().sum(-1).cpu())
        self.labels.append(labelled.double().sum(-1).cpu())
