"""Decoders that become mixtures of transformers' own classes: what their configs say, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import moeify
from moeify.errors import ConfigError, MoeifyError
from moeify.families.registry import CONVERSIONS
from moeify.families.values import text_config
from tests.families.edited import edit_config, read_config
from tests.families.test_contract import load_strictly
from tests.pruning.test_dense import flat
from tests.tiny import outer_type, save_tiny, state, texts_of, tolerance
from tests.upcycling.test_adapters import merged, save_adapter

WRAPPED = ("llava+llama", "llava+mistral", "mistral3+mistral")
TOWERED = ("qwen3_5", "qwen3_vl", *WRAPPED)
FAMILIES = (
    *("granite", "ernie4_5", "olmo2", "hunyuan_v1_dense", "cohere2", "lfm2"),
    *("llama", "mistral", "internlm3", "phi3", "qwen3_5_text", *TOWERED),
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 4e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def close(first: Path, second: Path, family: str) -> bool:
    found = moeify.verify(first, second)
    return found.relative_diff <= tolerance(family) and found.top1_agreement == 1


def same_config(first: Path, second: Path) -> bool:
    """Whether the config class reads the same out of both."""
    one, two = (flat(AutoConfig.from_pretrained(folder).to_dict()) for folder in (first, second))
    return all(two.get(key) == value for key, value in one.items() if key != "architectures")


def edit_text(folder: Path, **changes: object) -> None:
    """Change the part of config.json that describes the language model."""
    config = read_config(folder)
    if "text_config" not in config:
        edit_config(folder, **changes)
        return
    text = {key: value for key, value in (config["text_config"] | changes).items() if value is not ...}
    edit_config(folder, text_config=text)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_config_json_leaves_out_is_what_the_dense_class_assumes(tmp_path: Path, family: str) -> None:
    """The mixture's class may assume something else: what it assumes is written, there and back."""
    dense = save_tiny(tmp_path / "dense", family)
    defaults = text_config(AutoConfig.for_model(outer_type(family), **texts_of(family)).to_dict())
    said = text_config(read_config(dense))
    silent = [k for k, v in said.items() if k != "model_type" and defaults.get(k, ...) == v]
    silent += ["rms_norm_eps", "norm_eps", "layer_norm_eps"]
    silent += ["rope_parameters"] if family != "qwen3_vl" else []  # no default fits such narrow heads
    edit_text(dense, **dict.fromkeys(silent, ...))
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-5, "another value shows as 1e-3"
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=1)
    assert same_config(dense, tmp_path / "back")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("phi3", *TOWERED)])
def test_rotary_scaling_goes_along(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, rope_parameters=LLAMA3)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    assert close(dense, tmp_path / "moe", family)
    config = read_config(tmp_path / "moe")
    assert config["rope_theta"] == 4e4 and config["rope_scaling"]["factor"] == 8.0


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_join_and_leave_it(tmp_path: Path, family: str) -> None:
    dense, moe = save_tiny(tmp_path / "dense", family), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=3, top_k=2, experts_from=[dense, dense, dense], noise=0.0)
    assert close(dense, moe, family)
    moeify.add_experts(moe, tmp_path / "more", experts=(str(dense),))
    load_strictly(tmp_path / "more")
    assert moeify.inspect(tmp_path / "more").num_experts == 4
    assert close(dense, tmp_path / "more", family)
    moeify.attach(moe, tmp_path / "attached", router="normal", top_k=1)
    assert close(dense, tmp_path / "attached", family)
    assert moeify.verify(dense, moe, low_memory=True).relative_diff <= tolerance(family)
    moeify.prune(tmp_path / "more", tmp_path / "fewer", keep=2, by="random")
    assert close(dense, tmp_path / "fewer", family)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_becomes_an_expert(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    names = [part.name.removesuffix(".weight") for part in CONVERSIONS[family][0].dense.ffn]
    adapter = save_adapter(dense, tmp_path / "adapter", r=2, target_modules=f".*({'|'.join(names)})")
    merged(dense, adapter, tmp_path / "merged")
    moeify.upcycle(dense, tmp_path / "moe", experts_from=[dense, adapter], rest="base", noise=0.0)
    moeify.extract(tmp_path / "moe", tmp_path / "one", expert=1)
    wanted, found = state(tmp_path / "merged"), state(tmp_path / "one")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


LAYERS_THAT_MAY_STAY_DENSE = {
    "ernie4_5": ("1-3", "odd", "2-3"),
    "cohere2": ("1-3", "odd", "2-3", "0,3"),
    "lfm2": ("1-3", "2-3"),
    "qwen3_vl": ("1-3", "odd", "2-3", "0,3"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["1-3", "odd", "2-3", "0,3"])
def test_layers_stay_dense_where_the_class_can_say_so(tmp_path: Path, family: str, layers: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    if layers not in LAYERS_THAT_MAY_STAY_DENSE.get(family, ()):
        with pytest.raises(ConfigError, match=r"has no way to say that layers? [\d, -]+ stay dense"):
            moeify.upcycle(dense, tmp_path / "moe", layers=layers)
        assert not (tmp_path / "moe").exists()
        return
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, layers=layers, noise=0.0)
    load_strictly(tmp_path / "moe")
    assert close(dense, tmp_path / "moe", family)
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=1)
    before, after = state(dense), state(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("granite", {"mlp_bias": True}, "mlp_bias set: GraniteMoE's experts"),
        ("ernie4_5", {"use_bias": True}, "use_bias set: the mixture's experts"),
    ],
)
def test_what_the_mixture_has_nothing_of_is_refused(
    tmp_path: Path, family: str, options: dict[str, Any], said: str
) -> None:
    dense = save_tiny(tmp_path / "dense", family, **options)
    assert moeify.inspect(dense).problems == []
    with pytest.raises(MoeifyError, match=said):
        moeify.upcycle(dense, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("family", ["granite", "olmo2", "hunyuan_v1_dense", "cohere2"])
def test_biases_of_attention_go_along(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, attention_bias=True)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    load_strictly(tmp_path / "moe")
    assert close(dense, tmp_path / "moe", family)
    engines = CONVERSIONS[family][0].engines
    said = {engine.name: engine.says(read_config(tmp_path / "moe")) for engine in engines}
    assert said["vLLM"].startswith("no") == (family == "granite")


def test_lfm2_s_width_is_what_its_config_makes_of_it(tmp_path: Path) -> None:
    options = {"block_auto_adjust_ff_dim": True, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.5}
    dense = save_tiny(tmp_path / "dense", "lfm2", conv_bias=True, intermediate_size=40, **options)
    edit_config(dense, intermediate_size=..., block_ff_dim=40, tie_word_embeddings=..., tie_embedding=True)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    load_strictly(tmp_path / "moe")
    assert close(dense, tmp_path / "moe", "lfm2")
    assert read_config(tmp_path / "moe")["moe_intermediate_size"] == 48
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=0)
    assert moeify.verify(dense, tmp_path / "back").bit_exact


def test_a_head_that_the_mixture_lacks_is_refused(tmp_path: Path) -> None:
    for family in FAMILIES:
        conversion = CONVERSIONS[family][0]
        for head in set(conversion.dense.heads) - set(conversion.heads or conversion.dense.heads):
            dense = save_tiny(tmp_path / family / head, family, conversion.dense.class_prefix + head)
            with pytest.raises(MoeifyError, match="which does not exist"):
                moeify.upcycle(dense, tmp_path / "moe")
