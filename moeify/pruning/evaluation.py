"""Held-out loss of a checkpoint: next tokens, or masked ones where the model fills gaps."""

from __future__ import annotations

from pathlib import Path

from moeify.checkpoint.reader import Checkpoint
from moeify.families.registry import vocabulary_size
from moeify.families.values import Config
from moeify.pruning.config import PruneConfig
from moeify.routing.data import Blocks, tokenizer_for
from moeify.routing.examples import Examples, loss_with_head
from moeify.routing.held_out import BlockLosses, losses_on


def loss_of(config: Config) -> str:
    """The loss that the class of a mixture has; raises ``ConfigError`` where it predicts no tokens."""
    return loss_with_head(config, "leave --eval out, and measure the result on your own task")


def held_out_losses(folder: Path, blocks: Blocks, config: PruneConfig, scratch: Path) -> BlockLosses:
    """Losses of the mixture in ``folder`` on ``blocks``, in nats.

    ``scratch`` is a folder for what layers give, where they run one by one.
    """
    checkpoint = Checkpoint.open(folder)
    loss = loss_of(checkpoint.config)
    tokenizer = tokenizer_for(folder) if loss == "masked" else None
    known = vocabulary_size(checkpoint.config)
    examples = Examples(blocks, loss, tokenizer, config.seed, known)
    return losses_on(checkpoint, examples, batch_size=config.batch, low_memory=config.low_memory, scratch=scratch)


def summary(losses: tuple[float, ...]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    mean = sum(losses) / len(losses)
    if len(losses) < 2:
        return mean, 0.0
    return mean, (sum((x - mean) ** 2 for x in losses) / (len(losses) - 1)) ** 0.5
