"""Every family and every head: upcycled, it computes what the dense model computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from moeify.families.registry import CONVERSIONS
from moeify.routing.loading import load_model, model_class
from tests.tiny import FAMILY_HEADS, LAYERS, LM_HEADS, save_tiny, state, tolerance


def load_strictly(folder: Path) -> torch.nn.Module:
    """The model, refused when a key is missing, unexpected or mismatched."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    model, info = model_class(config).from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], f"{kind}: {info[kind]}"
    return model.eval()


@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_every_head_is_exact(tmp_path: Path, family: str, head: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, head)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=4, top_k=2, noise=0.0)
    model = load_strictly(tmp_path / "moe")
    original = load_model(dense)
    conversion = CONVERSIONS[family][0]
    assert type(model).__name__ == head.replace(conversion.dense.class_prefix, conversion.moe.class_prefix, 1)
    assert report.params_dense == original.num_parameters()
    assert report.params_total == model.num_parameters()
    comparison = moeify.verify(dense, tmp_path / "moe")
    assert comparison.relative_diff <= tolerance(family)
    assert comparison.top1_agreement == 1.0


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f, known in CONVERSIONS.items() if not known[0].dense.encoder])
def test_greedy_tokens_are_the_dense_models(tmp_path: Path, family: str) -> None:
    """One by one with the cache, longer than any window."""
    dense = save_tiny(tmp_path / "dense", family)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, top_k=2, noise=0.0)
    prompt = torch.tensor([[5, 9, 17, 33, 2, 40, 3], [8, 7, 6, 11, 22, 33, 44]])
    wanted, found = (
        load_model(folder).generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        for folder in (dense, tmp_path / "moe")
    )
    assert torch.equal(wanted, found)


@pytest.mark.parametrize("family", CONVERSIONS)
@pytest.mark.parametrize(("router", "top_k"), [("calibrated", 3), ("normal", 1)])
def test_every_router_is_exact(tmp_path: Path, family: str, router: str, top_k: int) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=3, top_k=top_k, noise=0.0, router=router)
    comparison = moeify.verify(dense, tmp_path / "moe")
    assert comparison.relative_diff <= tolerance(family)
    assert comparison.top1_agreement == 1.0


@pytest.mark.parametrize("family", CONVERSIONS)
def test_bfloat16_with_tied_experts_is_bit_exact(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, dtype="bfloat16")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, top_k=4, noise=0.0, router="zeros")
    comparison = moeify.verify(dense, tmp_path / "moe")
    assert comparison.dtype == "bfloat16"
    assert comparison.bit_exact


@pytest.mark.parametrize("family", LM_HEADS)
@pytest.mark.parametrize(
    ("layers", "expected"), [("odd", (1, 3)), ("even", (0, 2)), ("last-half", (2, 3)), ("0,2-3", (0, 2, 3))]
)
def test_layers_stay_dense(tmp_path: Path, family: str, layers: str, expected: tuple[int, ...]) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=2, layers=layers, noise=0.0)
    assert report.moe_layers == expected
    model = load_strictly(tmp_path / "moe")
    assert report.params_total == model.num_parameters()
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= tolerance(family)
    routers = [name for name in state(tmp_path / "moe") if "router" in name or "mlp.gate." in name]
    assert len(routers) == len(expected) < LAYERS


@pytest.mark.parametrize("family", CONVERSIONS)
def test_tied_embeddings(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, tie_word_embeddings=True)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    model = load_strictly(tmp_path / "moe")
    assert report.params_total == model.num_parameters()
    assert report.params_dense == load_model(dense).num_parameters()
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= tolerance(family)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_native_config_serves_every_engine(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, layers="odd")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["num_experts"] == 4
    assert config.get("num_local_experts", 4) == 4
    assert (family == "qwen3") == ("num_local_experts" in config)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5
    assert config["norm_topk_prob"] is True
    assert config["mlp_only_layers"] == [0, 2]
    assert "auto_map" not in config


def test_qwen2_sliding_layers_are_carried_over(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    config_path = dense / "config.json"
    config = json.loads(config_path.read_text())
    expected = config.pop("layer_types")
    config_path.write_text(json.dumps(config))
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    written = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert written["layer_types"] == expected == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6


MIXED = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}


@torch.no_grad()
@pytest.mark.parametrize("head", ["Qwen3Model", "Qwen3ForCausalLM"])
@pytest.mark.parametrize(
    ("options", "layers"), [({"tie_word_embeddings": True}, "all"), ({"attention_bias": True}, "all"), ({}, "odd")]
)
def test_qwen3_with_mixed_windows_becomes_a_mellum(
    tmp_path: Path, head: str, options: dict[str, Any], layers: str
) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 3e4, "factor": 2.0, "original_max_position_embeddings": 32}
    dense = save_tiny(tmp_path / "dense", "qwen3", head, **MIXED, rope_parameters=yarn, **options)
    assert moeify.inspect(dense).upcycled.model_type == "mellum"
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, layers=layers, noise=0.0)
    model = load_strictly(tmp_path / "moe")
    assert report.params_total == model.num_parameters() == moeify.inspect(tmp_path / "moe").params_total
    assert moeify.inspect(tmp_path / "moe").problems == []
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6
    if head == "Qwen3ForCausalLM":
        prompt = torch.tensor([[5, 9, 17, 33, 2, 40, 3]])
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        assert torch.equal(load_model(dense).generate(prompt, **settings), model.generate(prompt, **settings))
    moeify.prune(tmp_path / "moe", tmp_path / "back", keep=1, by="random", dense=True)
    before, after = state(dense), state(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    one, two = (json.loads((folder / "config.json").read_text()) for folder in (dense, tmp_path / "back"))
    ours = {"rope_scaling", "rope_theta", "architectures", "transformers_version", "num_experts_per_tok"}
    assert {key for key in one if key not in ours and one[key] != two[key]} == set()


def test_windows_that_no_native_mixture_has_for_a_head(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3", "Qwen3ForSequenceClassification", **MIXED)
    report = moeify.upcycle(dense, tmp_path / "own", noise=0.0)
    assert "becomes qwen3_own_moe" in report.warnings[0]
    assert moeify.verify(dense, tmp_path / "own").relative_diff <= 1e-6
    with pytest.raises(moeify.MoeifyError, match="mixes full and sliding") as caught:
        moeify.upcycle(dense, tmp_path / "moe", arch="qwen3_moe")
    assert "moeify's own class" in str(caught.value.hint)
    with pytest.raises(moeify.MoeifyError, match="MellumForSequenceClassification, which does not exist"):
        moeify.upcycle(dense, tmp_path / "moe", arch="mellum")
    plain = save_tiny(tmp_path / "plain", "qwen3")
    moeify.upcycle(plain, tmp_path / "mellum", arch="mellum", num_experts=2, noise=0.0)
    assert moeify.verify(plain, tmp_path / "mellum").relative_diff <= 1e-6
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("windows", [0, LAYERS])
def test_qwen3_with_one_kind_of_window(tmp_path: Path, windows: int) -> None:
    dense = save_tiny(
        tmp_path / "dense", "qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=windows
    )
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6
