"""One held-out loss: what prune and warm-up report of the same text is the same number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import moeify
from moeify.routing import passes
from moeify.routing.head import _HEAD_NOT_LAST
from moeify.routing.held_out import BlockLosses
from tests.families.published_models import save, tiny
from tests.real.checkpoints import demo_gpt2
from tests.tiny import save_tiny
from tests.warming.mixtures import DEMO, corpus, with_tokenizer


def masked(folder: Path) -> Path:
    """A BERT that fills gaps, with the shipped tokenizer and a token for them."""
    dense = save_tiny(folder, "bert", "BertForMaskedLM", vocab_size=2048)
    known = str(DEMO / "gpt2" / "tokenizer.json")
    PreTrainedTokenizerFast(tokenizer_file=known, mask_token="!").save_pretrained(dense)
    return dense


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["causal", "masked"])
def test_prune_and_warmup_report_the_same(loss: str, tmp_path: Path) -> None:
    dense = demo_gpt2() if loss == "causal" else masked(tmp_path / "dense")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.3)
    text = {"dataset": str(corpus(tmp_path)), "seq_len": 32, "seed": 3}
    pruned = moeify.prune(tmp_path / "moe", tmp_path / "p", keep=2, evaluate=True, random_seeds=1, **text)
    warmed = moeify.warmup(tmp_path / "moe", tmp_path / "w", steps=0, fit="none", device="cpu", fit_tokens=256, **text)
    assert pruned.held_out is not None
    assert pruned.held_out.tokens == warmed.eval_tokens
    assert pruned.held_out.before == pytest.approx(warmed.eval_loss_before, rel=1e-6)
    if loss == "causal":
        assert pruned.held_out.before == pytest.approx(directly(tmp_path / "moe", text), rel=1e-5)


def test_tokens_of_a_class_that_changes_its_logits_are_counted_once(tmp_path: Path) -> None:
    """GraniteMoe divides what its head gives, which shows when it runs."""
    model = tiny("granitemoe", tied=False, vocab_size=2048, logits_scaling=3.0)
    with_tokenizer(save(model, tmp_path / "m"))
    _HEAD_NOT_LAST.clear()
    options = {"dataset": str(DEMO / "text.jsonl"), "steps": 0, "fit": "none", "batch": 8, "seq_len": 16}
    tokens = {"eval_tokens": 256, "fit_tokens": 256, "device": "cpu"}
    whole, layered = (
        moeify.warmup(tmp_path / "m", tmp_path / str(low), low_memory=low, **options, **tokens)
        for low in (False, True)
    )
    assert whole.max_violation_before == pytest.approx(layered.max_violation_before, rel=1e-6)
    assert whole.eval_loss_before == pytest.approx(layered.eval_loss_before, rel=1e-6)


def directly(folder: Path, text: dict[str, object]) -> float:
    """The mean over all next tokens, from whole logits."""
    from moeify.checkpoint.reader import Checkpoint
    from moeify.routing.config import DataConfig
    from moeify.routing.data import blocks_for
    from moeify.routing.loading import load_model

    blocks, _ = blocks_for(Checkpoint.open(folder), DataConfig(**text), 131_072)
    held_out = blocks.split(0.1)[1]
    inputs, model = held_out.inputs(), load_model(folder)
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
    labels = inputs["input_ids"][:, 1:].masked_fill(inputs["attention_mask"][:, 1:] == 0, -100)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten())
    return float(loss)


@pytest.mark.parametrize("loss", ["causal", "distill"])
def test_room_on_disk_is_asked_for_all_that_is_written(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moeify.upcycle(demo_gpt2(), tmp_path / "moe", num_experts=3, noise=0.3)
    asked, written, original = [0], [0], passes._States.write

    def write(states: passes._States, *values: Any) -> None:
        original(states, *values)
        assert states.folder is not None
        written.append(sum(path.stat().st_size - 128 for path in states.folder.iterdir()))

    monkeypatch.setattr(passes, "check_free_space", lambda _, needed: asked.append(needed))
    monkeypatch.setattr(passes._States, "write", write)
    text = {"dataset": str(DEMO / "text.jsonl"), "seq_len": 32, "fit_tokens": 256, "eval_tokens": 1024}
    options = {"steps": 0, "fit": "none", "loss": loss, "low_memory": True}
    moeify.warmup(tmp_path / "moe", tmp_path / "w", **text, **options)
    assert 0.9 * max(asked) < max(written) <= max(asked)


def test_standard_errors_are_those_of_blocks() -> None:
    draws = np.random.default_rng(0)
    labels = np.full(400, 50.0)
    hard = draws.normal(3.0, 0.5, 400)  # what both models find hard
    first = BlockLosses(sums=labels * hard, labels=labels)
    second = BlockLosses(sums=labels * (hard + draws.normal(0.02, 0.01, 400)), labels=labels)
    loss, change = first.estimate(), second.above(first)
    assert loss.error == pytest.approx(hard.std(ddof=1) / 20)
    assert change.value == pytest.approx(0.02, abs=0.002) and change.error == pytest.approx(0.01 / 20, rel=0.2)
    assert change.above_zero and not first.above(second).above_zero
    same = BlockLosses(sums=first.sums + draws.normal(0, 1e-6, 400), labels=labels)
    assert not same.above(first).above_zero
    one = first.at(np.array([3]))
    assert one.estimate().error is None and not one.above(one).above_zero
    longer = np.where(np.arange(400) < 200, 10.0, 90.0)  # blocks of unlike lengths: a ratio of sums
    drawn = [
        BlockLosses(sums=longer[rows] * hard[rows], labels=longer[rows]).mean()
        for rows in (draws.integers(0, 400, 400) for _ in range(2000))
    ]
    found = BlockLosses(sums=longer * hard, labels=longer).estimate()
    assert found.error == pytest.approx(np.std(drawn), rel=0.1)
