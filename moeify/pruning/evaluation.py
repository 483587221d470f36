"""Held-out loss of a checkpoint: next tokens, or masked ones where the model fills gaps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import ConfigError
from moeify.families.base import Config
from moeify.families.registry import moe_layout
from moeify.routing.data import Blocks, tokenizer_for
from moeify.routing.passes import passes_over

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_evaluation", "held_out_loss", "summary"]

MASKED_FRACTION = 0.15
_CAUSAL = ("CausalLM", "LMHeadModel", "DoubleHeadsModel", "ForConditionalGeneration")
_MASKED = ("ForMaskedLM", "ForPreTraining")


def check_evaluation(config: Config) -> None:
    """Raise ``ConfigError`` for a class without a language-model head."""
    name = str((config.get("architectures") or ["?"])[0])
    if not name.endswith((*_CAUSAL, *_MASKED)):
        raise ConfigError(
            f"the class {name!r} has no language-model head to measure a loss with",
            "leave --eval out, and measure the result on your own task",
        )


def held_out_loss(
    folder: Path, blocks: Blocks, batch_size: int, scratch: Path, low_memory: bool | None = None
) -> float:
    """Mean loss of the mixture in ``folder`` on ``blocks``, in nats per predicted token.

    ``scratch`` is a folder for what layers give, where they run one by one.

    Masked models fill the same 15 % of the tokens in every call.
    """
    import torch

    checkpoint = Checkpoint.open(folder)
    layout = moe_layout(checkpoint.config, checkpoint.tensors)
    masked = str((checkpoint.config.get("architectures") or [""])[0]).endswith(_MASKED)
    mask_token = int(tokenizer_for(folder).mask_token_id or 0) if masked else None
    total, count = 0.0, 0
    with passes_over(
        checkpoint, layout, blocks.input_ids.size, low_memory=low_memory, scratch=scratch, head=True
    ) as passes:
        for place in range(len(passes)):
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad(), passes.opened(place) as step:
                for number, (inputs, _) in enumerate(blocks.batches(batch_size)):
                    chosen, targets = _targets(inputs, mask_token, generator)
                    output = step.run(number, inputs)
                    if place == len(passes) - 1:
                        loss = _loss(_logits(output), chosen, targets)
                        total, count = total + loss, count + len(targets)
    return total / max(count, 1)


def _targets(
    inputs: dict[str, Tensor], mask_token: int | None, generator: Any
) -> tuple[Tensor, Tensor]:
    """Which places [B, S] are to be predicted, and their tokens; masked ones are hidden."""
    import torch

    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    if mask_token is None:
        chosen = torch.zeros_like(real)
        chosen[:, :-1] = real[:, 1:]
        return chosen, ids[:, 1:][real[:, 1:]]
    chosen = (torch.rand(ids.shape, generator=generator) < MASKED_FRACTION) & real
    inputs["input_ids"] = ids.masked_fill(chosen, mask_token)
    return chosen, ids[chosen]


def _loss(logits: Tensor, chosen: Tensor, targets: Tensor) -> float:
    import torch

    losses = torch.nn.functional.cross_entropy(
        logits[chosen].double(), targets, reduction="sum"
    )  # fmt: skip
    return float(losses)


def _logits(output: Any) -> Tensor:
    found: Tensor = output.prediction_logits if "prediction_logits" in output else output.logits
    return found


def summary(losses: tuple[float, ...]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    mean = sum(losses) / len(losses)
    if len(losses) < 2:
        return mean, 0.0
    return mean, (sum((x - mean) ** 2 for x in losses) / (len(losses) - 1)) ** 0.5
