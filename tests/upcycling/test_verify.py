"""Verify reports what a direct comparison finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import moeify
from moeify.errors import CheckpointError, ConfigError, DatasetError
from moeify.routing.loading import load_model
from tests.tiny import save_tiny


def test_figures_equal_a_direct_computation(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.3)
    report = moeify.verify(dense, tmp_path / "moe", batch=3, seq_len=16, seed=4)
    tokens = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        a, b = (load_model(folder)(tokens).logits for folder in (dense, tmp_path / "moe"))
    assert report.compared == ("logits",)
    assert report.tokens == 48
    assert report.max_abs_diff == (a - b).abs().max().item() > 0
    assert report.relative_diff == pytest.approx(report.max_abs_diff / a.abs().max().item())
    assert report.top1_agreement == pytest.approx((a.argmax(-1) == b.argmax(-1)).float().mean().item())
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none")
    assert report.kl == pytest.approx(kl.sum(-1).mean().item(), rel=1e-3)
    assert not report.bit_exact


def test_a_model_equals_itself(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert", "BertModel")
    report = moeify.verify(dense, dense)
    assert report.bit_exact
    assert report.compared == ("last_hidden_state",)
    assert (report.max_abs_diff, report.kl, report.top1_agreement) == (0.0, 0.0, 1.0)


def test_bad_input(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    small = save_tiny(tmp_path / "small", "qwen3", hidden_size=16)
    with pytest.raises(ConfigError, match="different sizes"):
        moeify.verify(dense, small)
    with pytest.raises(ConfigError, match="more than the model's 64 positions"):
        moeify.verify(dense, dense, seq_len=65)
    with pytest.raises(DatasetError, match="cannot read"):
        moeify.verify(dense, dense, text=tmp_path / "absent.txt")
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(CheckpointError):
        moeify.verify(dense, dense, text=tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("qwen2", "Qwen2ForSequenceClassification"),
        ("qwen3", "Qwen3ForSequenceClassification"),
        ("gpt2", "GPT2ForSequenceClassification"),
        ("bert", "BertForSequenceClassification"),
    ],
)
def test_a_classifier_without_a_padding_token(tmp_path: Path, family: str, head: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, head, pad_token_id=None)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    report = moeify.verify(dense, tmp_path / "moe", batch=3)
    assert report.relative_diff <= 1e-6
    assert (report.warnings == ()) == (family == "bert")
    assert all("pad_token_id" in warning for warning in report.warnings)
    assert moeify.verify(dense, tmp_path / "moe", batch=1).warnings == ()
    moeify.upcycle(dense, tmp_path / "noisy", num_experts=2, noise=0.5)
    assert moeify.verify(dense, tmp_path / "noisy", batch=3).relative_diff > 1e-3


def test_code_that_is_not_run_is_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    path = dense / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling_mine.Mine"}}
    path.write_text(json.dumps(config))
    of_dense, of_moe = moeify.verify(dense, dense).warnings
    assert "AutoModel in config.json" in of_dense
    assert of_moe == f"{dense}: {of_dense}"
