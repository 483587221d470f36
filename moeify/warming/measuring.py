"""One pass over held-out text: the loss of every block, and where the tokens go."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeify.routing.collection import Observer, collect, observed
from moeify.routing.loaded import LoadedMixture, Route
from moeify.routing.passes import WholeModel
from moeify.warming.objective import Examples, Objective

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BlockLosses", "measure"]


@dataclass(frozen=True, kw_only=True)
class BlockLosses:
    """Of each of N blocks the losses summed, ``sums`` [N], over its ``labels`` [N]."""

    sums: NDArray[np.float64]
    labels: NDArray[np.float64]

    def mean(self, rows: NDArray[np.intp] | slice = slice(None)) -> float:
        """The loss for a label, of all blocks or of those at ``rows``."""
        return float(self.sums[rows].sum() / max(self.labels[rows].sum(), 1.0))


def measure(
    model: nn.Module, objective: Objective, examples: Examples, batch_size: int, *,
    route: Route | None = None, rows: NDArray[np.intp] | None = None,
    observe: Observer | None = None,
) -> BlockLosses:  # fmt: skip
    """Losses of ``examples``, or of those with the numbers ``rows``, in their order.

    Tokens are sent by ``route`` or by the routers; ``observe`` is shown where those send them. The
    masked loss hides tokens, which then takes a pass of its own over the text as it is.
    """
    import torch

    rows = np.arange(len(examples)) if rows is None else rows
    device = next(model.parameters()).device
    sums, labels, training = [], [], model.training
    model.eval()
    if observe is not None and objective.loss == "masked":
        collect(
            WholeModel(model), objective.layout, examples.blocks, observe, batch_size=batch_size
        )
        observe = None
    layout = objective.layout
    there = nullcontext() if route is None else LoadedMixture(model, layout).rerouted(route)
    with torch.no_grad(), there:
        for start in range(0, len(rows), batch_size):
            numbers = rows[start : start + batch_size].tolist()
            batch = {name: held.to(device) for name, held in examples.batch(numbers).items()}
            goal = objective.goal(model, model, batch)
            seen = (
                nullcontext()
                if observe is None
                else observed(LoadedMixture(model, layout), observe)
            )
            with seen as expect:
                if expect is not None:
                    expect(batch["attention_mask"], examples.blocks.take(numbers))
                losses, labelled = objective.losses(model, model, batch, goal)
            sums.append(losses.double().sum(-1).cpu())
            labels.append(labelled.double().sum(-1).cpu())
    model.train(training)
    return BlockLosses(sums=torch.cat(sums).numpy(), labels=torch.cat(labels).numpy())
