"""Decoders become mixtures in moeify's own classes where no native one can express them, or on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from moeify.errors import CheckpointError, ConfigError, UnsupportedModelError
from moeify.modeling.moe_families import moe_type
from moeify.routing.loading import load_model
from tests.families.edited import edit_config
from tests.families.test_contract import load_strictly
from tests.tiny import save_tiny, state

INSTEAD = {
    "biases": ("llama", {"attention_bias": True}, "has biases"),
    "biases of the FFN": ("llama", {"mlp_bias": True}, r"has biases (mlp_bias is true)"),
    "partial rotary": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rotates a part of each head",
    ),
}


def held(dense: Path, moe: Path, model_type: str) -> None:
    """Exact, loads whole, generates the same, and gives the dense checkpoint back bit for bit."""
    assert json.loads((moe / "config.json").read_text())["model_type"] == model_type
    load_strictly(moe)
    assert moeify.verify(dense, moe).relative_diff <= 1e-6
    prompt = torch.tensor([[5, 9, 17, 33, 2, 40, 3], [8, 7, 6, 11, 22, 33, 44]])
    with torch.no_grad():
        wanted, found = (
            load_model(folder).generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
            for folder in (dense, moe)
        )
    assert torch.equal(wanted, found)
    moeify.prune(moe, moe.with_name("back"), keep=1, by="random", dense=True)
    before, after = state(dense), state(moe.with_name("back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert moeify.verify(dense, moe.with_name("back")).bit_exact


@pytest.mark.parametrize(("family", "options", "said"), INSTEAD.values(), ids=INSTEAD)
def test_what_no_native_mixture_expresses_becomes_an_own_one_and_says_so(
    tmp_path: Path, family: str, options: dict[str, Any], said: str
) -> None:
    dense = save_tiny(tmp_path / "dense", family, **options)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, noise=0.0)
    assert said in report.warnings[0] and f"becomes {family}_moe" in report.warnings[0]
    held(dense, tmp_path / "moe", f"{family}_moe")
    assert moeify.inspect(dense).to_dict()["upcycled"]["model_type"] == f"{family}_moe"


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen2", "qwen3"])
@pytest.mark.parametrize("layers", ["all", "odd"])
def test_an_own_class_on_request(tmp_path: Path, family: str, layers: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0, arch="own", layers=layers)
    assert report.warnings == ()
    held(dense, tmp_path / "moe", moe_type(family))


def test_slices_of_qwen3_are_exact_where_layers_have_windows(tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "layer_types": None}
    dense = save_tiny(tmp_path / "dense", "qwen3", **windows)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=3, top_k=1, slices=4, shared=1, noise=0.0, arch="own")
    held(dense, tmp_path / "moe", "qwen3_own_moe")


@pytest.mark.parametrize("family", ["llama", "smollm3", "modernbert"])
@pytest.mark.parametrize("options", [{"noise": 0.0}, {"slices": 2, "noise": 0.0, "router": "normal"}], ids=str)
def test_biases_of_the_ffn_become_the_experts(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    dense = save_tiny(tmp_path / "dense", family, mlp_bias=True)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, **options)
    model = load_strictly(tmp_path / "moe")
    said = moeify.inspect(tmp_path / "moe")
    assert said.problems == [] and said.params_total == report.params_total == model.num_parameters()
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6
    names = [name for name in state(tmp_path / "moe") if name.endswith("_proj_bias")]
    assert len(names) == 2 * said.num_layers
    moeify.prune(tmp_path / "moe", tmp_path / "fewer", keep=2 * options.get("slices", 1), by="random")
    load_strictly(tmp_path / "fewer")
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=1)
    assert moeify.verify(dense, tmp_path / "back").relative_diff <= (1e-6 if "slices" in options else 0)
    plain = save_tiny(tmp_path / "plain", family)
    with pytest.raises(
        CheckpointError, match="FFN of down, gate, up, not down, down_bias, gate, gate_bias, up, up_bias"
    ):
        moeify.upcycle(dense, experts_from=[dense, plain], dry_run=True)


def test_a_type_without_an_own_class_says_what_there_is(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "granite")
    with pytest.raises(ConfigError, match="does not become 'own', but granitemoe"):
        moeify.upcycle(dense, tmp_path / "moe", arch="own")


@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_t5_is_refused_with_what_would_be_lost(tmp_path: Path, model_type: str) -> None:
    dense = save_tiny(tmp_path / "dense", "bert")
    edit_config(dense, model_type=model_type)
    with pytest.raises(UnsupportedModelError) as caught:
        moeify.upcycle(dense, tmp_path / "moe")
    assert "expert_capacity" in str(caught.value.hint) and "gated" in str(caught.value.hint)
    assert not (tmp_path / "moe").exists()
