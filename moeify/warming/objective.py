"""What a mixture is trained on besides balance, by its head, and the loss on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import ConfigError
from moeify.families.base import MoeLayout
from moeify.routing.collection import base_model
from moeify.routing.data import Blocks
from moeify.routing.running import run_model
from moeify.warming.config import Loss
from moeify.warming.routes import Route, all_experts, rerouted

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Examples", "Objective", "choose_loss", "evaluate"]

IGNORED = -100
_MASKED_FRACTION = 0.15
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_MASKED = ("ForMaskedLM", "ForPreTraining")


def choose_loss(architecture: str, loss: Loss, steps: int) -> Loss:
    """The loss for a class; raises ``ConfigError`` where the class cannot have it."""
    fitting: Loss | None = None
    if architecture.endswith(_CAUSAL):
        fitting = "causal"
    elif architecture.endswith(_MASKED):
        fitting = "masked"
    elif architecture.endswith("Model"):
        fitting = "distill"
    if loss == "distill":
        return loss
    if loss == "auto":
        if fitting is None and steps:
            raise ConfigError(
                f"{architecture} has a head for which text alone gives no loss",
                "pass --loss distill to learn the dense function, or --steps 0 to fit only",
            )
        return fitting or "distill"
    if loss != fitting:
        raise ConfigError(
            f"{architecture} has no head for the {loss} loss",
            f"pass --loss {fitting or 'distill'}, or leave --loss out",
        )
    return loss


class Examples:
    """Blocks as a dataset of model inputs and labels [S], int64; -100 marks what has no label.

    For the masked loss 15 % of each block's tokens are hidden (80 % mask, 10 % random, 10 %
    kept), the same ones whenever the block is read, by whichever process.
    """

    def __init__(self, blocks: Blocks, loss: Loss, tokenizer: Any, seed: int) -> None:
        if loss == "masked" and tokenizer.mask_token_id is None:
            raise ConfigError(
                "the masked loss needs a tokenizer with a mask token, and this one has none",
                "pass --loss distill",
            )
        self.blocks, self.loss, self.tokenizer, self.seed = blocks, loss, tokenizer, seed
        self._special = np.array(sorted(getattr(tokenizer, "all_special_ids", [])))

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        import torch

        ids = self.blocks.input_ids[number].astype(np.int64)
        real = np.arange(len(ids)) < self.blocks.lengths[number]
        labels = np.where(real, ids, IGNORED)
        if self.loss == "masked":
            ids, labels = self._hidden(ids, labels, number)
        arrays = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Several examples, [B, S]."""
        import torch

        items = [self[row] for row in rows]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _hidden(self, ids: Any, labels: Any, number: int) -> tuple[Any, Any]:
        draw = np.random.default_rng([self.seed, number, len(self.blocks)])
        open_places = (labels != IGNORED) & ~np.isin(ids, self._special)
        chosen = open_places & (draw.random(len(ids)) < _MASKED_FRACTION)
        how = draw.random(len(ids))
        words = draw.integers(0, len(self.tokenizer), len(ids))
        hidden = np.where(chosen & (how < 0.8), self.tokenizer.mask_token_id, ids)
        hidden = np.where(chosen & (how >= 0.9), words, hidden)
        return hidden, np.where(chosen, labels, IGNORED)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The task loss of a model. ``teacher`` is a dense model for ``distill``, None for the mean
    of the experts."""

    loss: Loss
    layout: MoeLayout
    teacher: nn.Module | None = None

    def sums(self, model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor]) -> tuple[
        Tensor, Tensor
    ]:  # fmt: skip
        """Summed loss and number of labels of a batch.

        ``model`` is what is called (it may be wrapped for several processes), ``mixture`` the
        model inside.
        """
        from torch.nn.functional import cross_entropy

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        labels = batch["labels"]
        if self.loss == "distill":
            return self._distance(model, mixture, inputs)
        cached = {} if self.loss == "masked" else {"use_cache": False}
        out = run_model(model, **inputs, **cached, return_dict=True)
        logits = out["prediction_logits"] if "prediction_logits" in out else out["logits"]
        if self.loss == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        count = (labels != IGNORED).sum()
        flat = logits.flatten(0, 1).float()
        total = cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total, count

    def _distance(self, model: nn.Module, mixture: nn.Module, inputs: dict[str, Tensor]) -> tuple[
        Tensor, Tensor
    ]:  # fmt: skip
        import torch

        headless = base_model(mixture) is mixture

        def last_hidden() -> Tensor:
            # Through the wrapper, which has to see the parameters that are used.
            states = (
                run_model(model, **inputs)[0] if headless
                else run_model(model, **inputs, output_hidden_states=True).hidden_states[-1]
            )  # fmt: skip
            result: Tensor = states.float()
            return result

        with torch.no_grad():
            if self.teacher is not None:
                wanted = run_model(base_model(self.teacher), **inputs)[0].float()
            else:
                with rerouted(mixture, self.layout, all_experts()):
                    wanted = last_hidden()
        found = last_hidden()
        real = inputs["attention_mask"].bool()
        distance = (found - wanted)[real].square().sum(-1)
        return (distance / wanted[real].square().sum(-1)).sum(), real.sum()


def evaluate(
    model: nn.Module, objective: Objective, examples: Examples, batch_size: int,
    route: Route | None = None, rows: Sequence[int] | None = None,
) -> float:  # fmt: skip
    """Mean loss over ``examples``, with the tokens sent by ``route`` or by the routers.

    ``rows`` are the numbers of the examples that count; all do where it is None.
    """
    import torch

    rows = range(len(examples)) if rows is None else rows
    device = next(model.parameters()).device
    total = count = 0.0
    training = model.training
    model.eval()
    with torch.no_grad(), rerouted(model, objective.layout, route):
        for start in range(0, len(rows), batch_size):
            batch = examples.batch(rows[start : start + batch_size])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            loss, labels = objective.sums(model, model, batch)
            total, count = total + float(loss), count + float(labels)
    model.train(training)
    return total / max(count, 1.0)
