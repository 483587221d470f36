"""Options that cannot work, and losses that suit a head."""

from pathlib import Path

import pytest

from moeify.errors import ConfigError
from moeify.warming.config import WarmupConfig
from moeify.warming.objective import choose_loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "best"}, "fit 'best'"),
        ({"balance": "l2"}, "balance 'l2'"),
        ({"train": "head"}, "train 'head'"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"learning_rate": float("nan")}, "learning-rate"),
        ({"held_out": 1.0}, "held-out"),
        ({"entropy": 1.5}, "entropy"),
        ({"seq_len": 0}, "seq-len"),
        ({"max_samples": 0}, "max-samples"),
        ({"fit": "domains"}, "needs to know them"),
        ({"plot": Path("x.pdf")}, ".svg or .png"),
        ({"dataset": ""}, "no dataset"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_options_are_one_sentence_and_a_hint(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        WarmupConfig(**{"dataset": "text.txt", **options})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("architecture", "loss", "steps", "expected"),
    [
        ("GPT2MoeLMHeadModel", "auto", 5, "causal"),
        ("Qwen3MoeForCausalLM", "auto", 5, "causal"),
        ("BertMoeLMHeadModel", "auto", 5, "causal"),
        ("BertMoeForMaskedLM", "auto", 5, "masked"),
        ("BertMoeForPreTraining", "auto", 5, "masked"),
        ("BertMoeModel", "auto", 5, "distill"),
        ("GPT2MoeLMHeadModel", "distill", 5, "distill"),
        ("BertMoeForSequenceClassification", "auto", 0, "distill"),
        ("BertMoeForSequenceClassification", "distill", 5, "distill"),
    ],
)
def test_the_loss_follows_the_head(architecture, loss, steps, expected):
    assert choose_loss(architecture, loss, steps) == expected


@pytest.mark.parametrize(
    ("architecture", "loss"),
    [("BertMoeForSequenceClassification", "auto"), ("BertMoeModel", "causal"), ("GPT2MoeLMHeadModel", "masked")],
)
def test_a_loss_without_its_head_is_refused(architecture, loss):
    with pytest.raises(ConfigError, match=architecture):
        choose_loss(architecture, loss, 5)
