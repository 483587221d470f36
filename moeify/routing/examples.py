"""Blocks of text and what is to be predicted in them: next tokens, or tokens that are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.errors import ConfigError
from moeify.families.values import Config
from moeify.routing.data import Blocks
from moeify.routing.head import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

_MASKED_FRACTION = 0.15
_CAUSAL = ("CausalLM", "LMHeadModel", "DoubleHeadsModel", "ForConditionalGeneration")
_MASKED = ("ForMaskedLM", "ForPreTraining")


def text_loss(architecture: str) -> str | None:
    """The loss that text alone gives a class: causal, masked, or none."""
    if architecture.endswith(_MASKED):
        return "masked"
    return "causal" if architecture.endswith(_CAUSAL) else None


def architecture_of(config: Config) -> str:
    """The class that config.json names."""
    return str((config.get("architectures") or ["?"])[0])


def loss_with_head(config: Config, hint: str) -> str:
    """``text_loss`` of the class that config.json names; raises ``ConfigError`` with ``hint`` where it has none."""
    name = architecture_of(config)
    loss = text_loss(name)
    if loss is None:
        raise ConfigError(f"the class {name!r} has no language-model head to measure a loss with", hint)
    return loss


def next_labels(labels: Tensor) -> Tensor:
    """Labels [B, S] for the tokens before them."""
    import torch

    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


class Examples:
    """Blocks as a dataset of model inputs and labels [S], int64; -100 marks what has no label.

    For the masked loss 15 % of each block's tokens are hidden (80 % mask, 10 % random, 10 %
    kept), the same ones whenever the block is read, by whichever process.
    """

    def __init__(self, blocks: Blocks, loss: str, tokenizer: Any, seed: int, known: int | None = None) -> None:
        if loss == "distill" and blocks.labelled is not None:
            raise ConfigError(
                "the distill loss compares every token, and has no labels that --assistant-only could choose",
                "leave --assistant-only out",
            )
        if loss == "masked" and tokenizer.mask_token_id is None:
            raise ConfigError(
                "the masked loss needs a tokenizer with a mask token, and this one has none", "pass --loss distill"
            )
        # A tokenizer may have more tokens than the model knows.
        words = 0 if tokenizer is None else len(tokenizer)
        self._words = words if known is None else min(words, known)
        if loss == "masked" and tokenizer.mask_token_id >= self._words:
            raise ConfigError(
                f"the tokenizer's mask token is {tokenizer.mask_token_id}, the model knows {self._words} tokens",
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
        labelled = real if self.blocks.labelled is None else real & self.blocks.labelled[number]
        labels = np.where(labelled, ids, IGNORED)
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
