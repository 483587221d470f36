"""--assistant-only: the loss is taken on what assistants say in conversations, and on nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

import moeify
from moeify.errors import ConfigError, DatasetError
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, read_blocks, tokenizer_for
from moeify.routing.examples import Examples
from moeify.routing.head import IGNORED
from tests.real.checkpoints import smollm2
from tests.warming.mixtures import DEMO, demo_mixture

LONG = "And it came to pass. " * 40
TALK = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Who? assistant: nobody"},
    {"role": "assistant", "content": "Me: größer 🙂."},
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": " Yes.\n"},
]
TRIMMING = (  # as templates of today do: contents are trimmed, and the last turn differs from the others
    "{% for m in messages %}<|{{ m.role }}|>{{ '(thinks)' if loop.last }}{{ m.content | trim }}!{% endfor %}"
)
CHANGING = "{% for m in messages %}{{ m.role }}={{ m.content | upper }};{% endfor %}"


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(blocks: Blocks, tokenizer: Any) -> str:
    """The text of the tokens that have labels."""
    labels = [Examples(blocks, "causal", tokenizer, 0)[n]["labels"] for n in range(len(blocks))]
    return str(tokenizer.decode([int(token) for row in labels for token in row if token != IGNORED]))


@pytest.mark.parametrize("seq_len", [8, 256])
@pytest.mark.parametrize("template", ["none", "own", "trimming"])
def test_labels_are_what_assistants_say(template: str, seq_len: int, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(smollm2(4) if template == "own" else DEMO / "gpt2")
    if template == "trimming":
        tokenizer.chat_template = TRIMMING
    data = written(tmp_path, [{"messages": TALK}])
    blocks = read_blocks(DataConfig(dataset=data, assistant_only=True), tokenizer, seq_len)
    expected = {
        "none": " Me: größer 🙂. Yes.\n" + tokenizer.eos_token,  # its first token begins with the space before it
        "own": "Me: größer 🙂.<|im_end|> Yes.\n<|im_end|>",
        "trimming": "Me: größer 🙂.Yes.",
    }[template]
    assert said(blocks, tokenizer) == expected
    everything = read_blocks(DataConfig(dataset=data), tokenizer, seq_len)
    assert (everything.input_ids == blocks.input_ids).all() and everything.labelled is None
    assert everything.fingerprint != blocks.fingerprint
    again = blocks.take([0])
    assert again.labelled is not None and again.labelled.shape == (1, seq_len)


def test_warmup_and_prune_measure_answers_alone(tmp_path: Path) -> None:
    moe = demo_mixture(tmp_path / "moe", noise=0.3)
    rows = [{"prompt": f"{LONG} {n}", "completion": "And the king said unto the people."} for n in range(12)]
    options: dict[str, Any] = {"dataset": written(tmp_path, rows), "seq_len": 64}
    quick = {"steps": 1, "fit": "none", "device": "cpu", "fit_tokens": 256, "batch": 2}
    answers = moeify.warmup(moe, tmp_path / "a", assistant_only=True, **options, **quick)
    everything = moeify.warmup(moe, tmp_path / "b", **options, **quick)
    assert answers.curve[0]["task"] != everything.curve[0]["task"]
    pruned = moeify.prune(
        moe, tmp_path / "c", keep=2, by="random", evaluate=True, assistant_only=True, random_seeds=1, **options
    )
    assert pruned.held_out is not None
    assert pruned.held_out.before == pytest.approx(answers.eval_loss_before, rel=1e-6)
    with pytest.raises(ConfigError, match="distill loss"):
        moeify.warmup(moe, tmp_path / "d", assistant_only=True, loss="distill", **options, **quick)
    with pytest.raises(ConfigError, match="--eval"):
        moeify.prune(moe, tmp_path / "d", keep=2, assistant_only=True, **options)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("row", "template", "sentence"),
    [
        ({"text": "plain"}, None, "holds texts, in which nobody answers"),
        ({"messages": TALK[:2]}, None, "no assistant says anything"),
        ({"messages": TALK}, CHANGING, "changes what a conversation says"),
    ],
)
def test_what_has_no_answers_is_said(row: dict[str, Any], template: str, sentence: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_for(DEMO / "gpt2")
    tokenizer.chat_template = template
    with pytest.raises(DatasetError, match=sentence) as caught:
        read_blocks(DataConfig(dataset=written(tmp_path, [row] * 3), assistant_only=True), tokenizer, 8)
    assert caught.value.hint is not None and "--assistant-only" in caught.value.hint
