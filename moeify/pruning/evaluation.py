"""Held-out loss of a checkpoint: next tokens, or masked ones where the model fills gaps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.errors import ConfigError
from moeify.families.base import Config
from moeify.routing.data import Blocks, tokenizer_for
from moeify.routing.loading import load_model

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_evaluation", "held_out_loss", "summary"]

MASKED_FRACTION = 0.15
_CAUSAL = ("CausalLM", "LMHeadModel", "DoubleHeadsModel")
_MASKED = ("ForMaskedLM", "ForPreTraining")


def check_evaluation(config: Config) -> None:
    """Raise ``ConfigError`` for a class without a language-model head."""
    name = str((config.get("architectures") or ["?"])[0])
    if not name.endswith((*_CAUSAL, *_MASKED)):
        raise ConfigError(
            f"the class {name!r} has no language-model head to measure a loss with",
            "leave --eval out, and measure the result on your own task",
        )


def held_out_loss(folder: Path, blocks: Blocks, batch_size: int) -> float:
    """Mean loss of the model in ``folder`` on ``blocks``, in nats per predicted token.

    Masked models fill the same 15 % of the tokens in every call.
    """
    import torch

    model = load_model(folder)
    masked = type(model).__name__.endswith(_MASKED)
    mask_token = tokenizer_for(folder).mask_token_id if masked else None
    generator = torch.Generator().manual_seed(0)
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, _ in blocks.batches(batch_size):
            ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
            if masked:
                chosen = (torch.rand(ids.shape, generator=generator) < MASKED_FRACTION) & real
                inputs["input_ids"] = ids.masked_fill(chosen, int(mask_token or 0))
                logits, targets = _logits(model(**inputs))[chosen], ids[chosen]
            else:
                chosen = real[:, 1:]
                logits, targets = _logits(model(**inputs))[:, :-1][chosen], ids[:, 1:][chosen]
            losses = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
            total, count = total + float(losses), count + len(targets)
    return total / max(count, 1)


def _logits(output: Any) -> Tensor:
    found: Tensor = output.prediction_logits if "prediction_logits" in output else output.logits
    return found


def summary(losses: tuple[float, ...]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    mean = sum(losses) / len(losses)
    if len(losses) < 2:
        return mean, 0.0
    return mean, (sum((x - mean) ** 2 for x in losses) / (len(losses) - 1)) ** 0.5
