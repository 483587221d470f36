"""What a mixture is trained on besides balance, by its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import ConfigError
from moeify.families.base import MoeLayout
from moeify.routing.data import Blocks
from moeify.routing.loaded import LoadedMixture, base_model, is_encoder
from moeify.routing.running import run_model
from moeify.warming.config import Loss
from moeify.warming.head import IGNORED, headless, token_losses
from moeify.warming.routes import all_experts

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Examples", "Objective", "choose_loss"]

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

    def __init__(
        self, blocks: Blocks, loss: Loss, tokenizer: Any, seed: int, known: int | None = None
    ) -> None:
        if loss == "masked" and tokenizer.mask_token_id is None:
            raise ConfigError(
                "the masked loss needs a tokenizer with a mask token, and this one has none",
                "pass --loss distill",
            )
        # A tokenizer may have more tokens than the model knows.
        self._words = min(len(tokenizer), len(tokenizer) if known is None else known)
        if loss == "masked" and tokenizer.mask_token_id >= self._words:
            raise ConfigError(
                f"the tokenizer's mask token is {tokenizer.mask_token_id}, the model knows"
                f" {self._words} tokens",
                "pass --loss distill, or copy the tokenizer that belongs to the model",
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
        words = draw.integers(0, self._words, len(ids))
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

    def goal(self, model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor]) -> Tensor | None:
        """What ``distill`` compares with: the teacher's last hidden states [B, S, H], float32.

        ``model`` is what is called (it may be wrapped for several processes), ``mixture`` the
        model inside.
        """
        import torch

        if self.loss != "distill":
            return None
        with torch.no_grad():
            if self.teacher is not None:
                found: Tensor = run_model(base_model(self.teacher), **_inputs(batch))[0].float()
                return found
            with LoadedMixture(mixture, self.layout).rerouted(all_experts()):
                return _last_hidden(model, mixture, batch)

    def losses(
        self, model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor], goal: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every token, 0 where it has no label, and which have one; both [B, S]."""
        import torch

        if goal is not None:
            real = batch["attention_mask"].bool()
            found = _last_hidden(model, mixture, batch)
            distance = (found - goal)[real].square().sum(-1) / goal[real].square().sum(-1)
            return distance.new_zeros(real.shape).masked_scatter(real, distance), real
        labels = batch["labels"]
        if self.loss == "causal":
            labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        cached = {} if self.loss == "masked" else {"use_cache": False}

        def logits() -> Tensor:
            out = run_model(model, **_inputs(batch), **cached, return_dict=True)
            name = "prediction_logits" if "prediction_logits" in out else "logits"
            found: Tensor = out[name]
            return found

        return token_losses(mixture, labels, logits), labels != IGNORED


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _last_hidden(model: nn.Module, mixture: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Through the wrapper, which has to see the parameters that are used."""
    # A cache would grow once more where a layer runs again.
    inputs = {**_inputs(batch), **({} if is_encoder(mixture) else {"use_cache": False})}
    if base_model(mixture) is mixture:
        states: Tensor = run_model(model, **inputs)[0]
        return states.float()
    with headless(mixture):
        out = run_model(model, **inputs, output_hidden_states=True)
    states = out.hidden_states[-1]
    return states.float()
