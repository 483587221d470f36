"""Adapters that change more than experts need, or name another copy of their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import moeify
from moeify.errors import CheckpointError
from tests.tiny import VOCAB, save_tiny
from tests.upcycling.specialists import ffn_tensors
from tests.upcycling.test_adapters import assert_ffn_equal, changed, merged, save_adapter, targets

CLASSIFIER = "Qwen3ForSequenceClassification"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("qwen") / "base", "qwen3")


def trained_as(base: Path, folder: Path, model: Any, **options: Any) -> Path:
    """An adapter on ``model``, which was loaded from ``base`` and changed before training."""
    config = peft.LoraConfig(**{"target_modules": targets("qwen3"), **options})
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3 if "lora_" in name else 0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


def resized(base: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(VOCAB + 8)
    return model


def classifier(base: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)


BOTH = rf"{targets('qwen3')}|.*(lm_head|embed_tokens)"
SURPLUS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "embeddings of another size": (resized, {"modules_to_save": ["embed_tokens", "lm_head"]}, "embed_tokens, lm_head"),
    "low ranks on embeddings of another size": (resized, {"target_modules": BOTH}, "lm_head"),
    "a classifier's head": (classifier, {"task_type": "SEQ_CLS"}, "score"),
    "single tokens": (
        transformers.AutoModelForCausalLM.from_pretrained,
        {"trainable_token_indices": [1, 2]},
        "embed_tokens",
    ),
}


@pytest.mark.parametrize("kind", SURPLUS)
def test_what_experts_do_not_need_may_be_of_any_size(base: Path, tmp_path: Path, kind: str) -> None:
    load, options, said = SURPLUS[kind]
    adapter = trained_as(base, tmp_path / "adapter", load(base), **options)
    plain = trained_as(base, tmp_path / "plain", load(base))
    report = moeify.upcycle(base, tmp_path / "moe", experts_from=[base, adapter], noise=0.0)
    (warning,) = report.warnings
    assert "is left out" in warning
    assert all(part in warning for part in said.split(", "))
    moeify.extract(tmp_path / "moe", tmp_path / "expert", expert=1)
    moeify.upcycle(base, tmp_path / "moe-plain", experts_from=[base, plain], noise=0.0)
    moeify.extract(tmp_path / "moe-plain", tmp_path / "expected", expert=1)
    original = ffn_tensors(base)
    for name, tensor in ffn_tensors(tmp_path / "expert").items():
        assert not torch.equal(tensor, original[name])
    if kind == "a classifier's head":
        assert_ffn_equal(tmp_path / "expert", tmp_path / "expected")


def test_the_mean_of_the_rest_needs_what_the_base_has(base: Path, tmp_path: Path) -> None:
    load, options, _ = SURPLUS["embeddings of another size"]
    adapter = trained_as(base, tmp_path / "adapter", load(base), **options)
    with pytest.raises(CheckpointError, match="lm_head"):
        moeify.upcycle(base, tmp_path / "moe", experts_from=[base, adapter], rest="mean")
    assert not (tmp_path / "moe").exists()


def test_ffns_of_layers_that_the_base_lacks_are_refused(base: Path, tmp_path: Path) -> None:
    deeper = save_tiny(tmp_path / "deeper" / "base", "qwen3", num_hidden_layers=6)
    adapter = save_adapter(deeper, tmp_path / "adapter", target_modules=targets("qwen3"))
    with pytest.raises(CheckpointError, match="no tensor of the base"):
        moeify.upcycle(base, tmp_path / "moe", experts_from=[base, adapter])


@pytest.mark.parametrize("name", ["unsloth/base-bnb-4bit", "/home/me/merged-base", "me/other"])
def test_the_name_of_the_base_is_warned_of_and_shapes_decide(base: Path, tmp_path: Path, name: str) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=targets("qwen3"))
    wanted = merged(base, adapter, tmp_path / "merged")
    changed(adapter, base_model_name_or_path=name)
    report = moeify.upcycle(base, tmp_path / "moe", experts_from=[base, adapter], noise=0.0)
    (warning,) = report.warnings
    assert warning.startswith(f"adapter: it was trained on {name}, not on base")
    moeify.extract(tmp_path / "moe", tmp_path / "expert", expert=1)
    assert_ffn_equal(tmp_path / "expert", wanted, rtol=1e-5, atol=1e-6)


def test_another_base_is_still_told_by_its_sizes(base: Path, tmp_path: Path) -> None:
    wider = save_tiny(tmp_path / "wider", "qwen3", intermediate_size=64)
    adapter = save_adapter(wider, tmp_path / "adapter", target_modules=targets("qwen3"))
    with pytest.raises(CheckpointError, match=r"the base's weight is \[32, 48\]"):
        moeify.upcycle(base, tmp_path / "moe", experts_from=[base, adapter])
