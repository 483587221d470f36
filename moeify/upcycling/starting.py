"""The loss of a mixture before any training, beside its base's, where the two do not compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moeify.checkpoint.reader import Checkpoint
from moeify.families.dense_checkpoint import Dense
from moeify.families.registry import known_layout
from moeify.families.values import Config
from moeify.provenance.companions import write_config
from moeify.routing.config import DataConfig
from moeify.routing.data import blocks_for
from moeify.routing.examples import Examples, architecture_of, text_loss
from moeify.routing.held_out import Estimate, hidden_states, losses_on
from moeify.routing.passes import passes_over
from moeify.upcycling.config import UpcycleConfig

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class StartingLoss:
    """Losses of a label of the text, by the ``loss`` of the model's head, in nats; ``tokens`` were read.

    A model without a head that text alone trains has ``distill``: the squared distance of last hidden states from the
    base's, relative to these, of which the base has none. Errors are standard errors over blocks of text.
    """

    loss: str
    tokens: int
    dense: float
    dense_error: float | None
    mixture: float
    mixture_error: float | None


def starting_text(view: Dense, config: UpcycleConfig) -> Examples:
    """The text that both are measured on, tokenised and labelled; raises ``MoeifyError``."""
    data = DataConfig.of(config, domain_column=None)
    blocks, tokenizer = blocks_for(view.checkpoint, data, config.fit_tokens)
    loss = text_loss(architecture_of(view.checkpoint.config))
    if loss is None or (loss == "masked" and tokenizer.mask_token_id is None):
        loss = "distill"
    known = view.layout.dims(view.checkpoint.config)["V"]
    return Examples(blocks, loss, tokenizer if loss == "masked" else None, config.seed, known)


def starting_loss(
    stage: Path, model_config: Config, view: Dense, examples: Examples, config: UpcycleConfig
) -> StartingLoss:
    """The losses of the base and of the mixture that ``stage`` holds the weights of."""
    write_config(stage, model_config)
    base, made = view.checkpoint, Checkpoint.open(stage)
    low_memory, goals, dense = config.low_memory, None, Estimate(value=0.0, error=None)
    if examples.loss == "distill":
        layout = known_layout(base.config)
        assert layout is not None, "it was planned by its layout"
        with passes_over(base, layout, low_memory=low_memory, scratch=stage) as passes:
            goals = hidden_states(passes, examples, BATCH)
    else:
        dense = losses_on(base, examples, batch_size=BATCH, low_memory=low_memory, scratch=stage).estimate()
    losses = losses_on(made, examples, batch_size=BATCH, low_memory=low_memory, scratch=stage, goals=goals)
    mixture = losses.estimate()
    return StartingLoss(
        loss=examples.loss,
        tokens=examples.blocks.tokens,
        dense=dense.value,
        dense_error=dense.error,
        mixture=mixture.value,
        mixture_error=mixture.error,
    )
