"""What is a Llama inside becomes a Mixtral: configs as they are published, and what Mixtral has no place for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import moeify
from moeify.errors import CheckpointError, ConfigError
from moeify.families.registry import CONVERSIONS
from moeify.routing.loading import load_model
from tests.families.edited import edit_config, edit_tensors, read_config
from tests.families.test_contract import load_strictly
from tests.tiny import SIZES, VOCAB, save_tiny, state

_SCALED = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 16}
_LONG = {"long_factor": [1.0, 1.3, 2.5, 4.0], "short_factor": [1.0, 1.05, 1.1, 1.2]}
_PHI = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "embd_pdrop": 0.0,
    "model_type": "phi3",
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 16,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2",
}
_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "model_type": "mistral",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
    },
    "TinyLlama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "model_type": "llama",
        "num_key_value_heads": 1,
        "pretraining_tp": 1,
        "sliding_window": 4,  # of another class, and not read
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.35.0",
    },
    "Llama-3.2": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "eos_token_id": [2, 3],
        "head_dim": 16,
        "mlp_bias": False,
        "model_type": "llama",
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**_SCALED, "rope_type": "llama3"},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
    },
    "Mistral-v0.1": {**_MISTRAL, "rope_theta": 10000.0, "sliding_window": 6},
    "Mistral-v0.3": {**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None},
    "Mistral-Nemo": {**_MISTRAL, "head_dim": 16, "rope_theta": 1000000.0, "sliding_window": None},
    "Phi-3-mini-4k": {**_PHI, "rope_scaling": None, "sliding_window": 7},
    "Phi-3-mini-128k": {**_PHI, "rope_scaling": {**_LONG, "type": "longrope"}, "sliding_window": 60},
    "InternLM3": {
        "architectures": ["InternLM3ForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_internlm3.InternLM3Config",
            "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
        },
        "bias": False,
        "head_dim": 16,
        "model_type": "internlm3",
        "num_key_value_heads": 2,
        "qkv_bias": False,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
        "rope_theta": 50000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.47.1",
    },
}
_SIZES = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "use_cache": True,
    "vocab_size": VOCAB,
}
_UNLIKE = ("_name_or_path", "architectures", "dtype", "transformers_version", "head_dim")


def save_published(folder: Path, name: str) -> Path:
    """Small random weights in float32 under a config.json as the Hub has it."""
    config = {**_SIZES, **PUBLISHED[name]}
    named = ("architectures", "auto_map", "model_type", "torch_dtype", "transformers_version")
    options = {key: value for key, value in config.items() if key not in named}
    unsaid = {key: None for key in SIZES.get(config["model_type"], {}) if key not in options}
    save_tiny(folder, config["model_type"], **unsaid, **json.loads(json.dumps(options)))
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published_it_is_exact_and_comes_back(tmp_path: Path, name: str) -> None:
    dense, moe, back = save_published(tmp_path / "dense", name), tmp_path / "moe", tmp_path / "back"
    edit_tensors(dense, _with_buffers)
    assert moeify.inspect(dense).problems == []
    report = moeify.upcycle(dense, moe, num_experts=3, noise=0.0)
    assert report.model_type == "mixtral"
    assert report.params_total == load_strictly(moe).num_parameters() == moeify.inspect(moe).params_total
    for seq_len in (8, 64):  # also past the length from which rotary positions are scaled
        compared = moeify.verify(dense, moe, seq_len=seq_len)
        assert compared.relative_diff <= 1e-6 and compared.top1_agreement == 1
    assert moeify.inspect(moe).problems == []
    config = read_config(moe)
    assert config["rope_theta"] == PUBLISHED[name].get("rope_theta", 10000.0)
    assert config["head_dim"] == PUBLISHED[name].get("head_dim", 8)
    assert "auto_map" not in config
    moeify.prune(moe, back, keep=1, by="random", dense=True)
    before = {key: tensor for key, tensor in state(dense).items() if "inv_freq" not in key}
    after = state(back)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert moeify.verify(dense, back).bit_exact
    one, two = (AutoConfig.from_pretrained(folder).to_dict() for folder in (dense, back))
    for config in (one, two):
        config["rope_parameters"].pop("type", None)  # for transformers 4
    read = AutoConfig.for_model(PUBLISHED[name]["model_type"]).to_dict().keys() - set(_UNLIKE)
    assert {key for key in read if one[key] != two[key]} == set()


def _with_buffers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the first Llama files have them in every layer."""
    return tensors | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}


def test_the_first_name_of_longrope(tmp_path: Path) -> None:
    """With which transformers 5 does not load Phi-3 any more."""
    dense = save_published(tmp_path / "dense", "Phi-3-mini-128k")
    moeify.upcycle(dense, tmp_path / "one", num_experts=2)
    edit_config(dense, rope_scaling={**_LONG, "type": "su"})
    moeify.upcycle(dense, tmp_path / "two", num_experts=2)
    assert read_config(tmp_path / "one") == read_config(tmp_path / "two")


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [("internlm3", {"qkv_bias": True, "bias": True}, r"has biases \(attention_bias is true\)")],
    ids=str,
)
def test_what_mixtral_has_no_place_for_is_refused(
    tmp_path: Path, family: str, options: dict[str, Any], said: str
) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    edit_config(dense, **options)
    with pytest.raises(ConfigError, match=said):
        moeify.upcycle(dense, tmp_path / "moe")
    with pytest.raises(ConfigError, match="mixtral has no way to say that layers 0, 2 stay dense"):
        moeify.upcycle(save_tiny(tmp_path / "plain", family), tmp_path / "moe", layers="odd")
    assert not (tmp_path / "moe").exists()


def test_joined_tensors_of_another_shape_are_noticed(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "phi3")
    assert moeify.inspect(dense).params_total == load_model(dense).num_parameters()
    edit_config(dense, intermediate_size=40)
    assert {problem.kind for problem in moeify.inspect(dense).problems} == {"shape"}
    with pytest.raises(CheckpointError, match="has shape"):
        moeify.upcycle(dense, tmp_path / "moe")


def test_biases_are_sorted_although_they_are_refused(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama", attention_bias=True, mlp_bias=True)
    found = moeify.inspect(dense)
    assert found.problems == [] and found.params_total == load_model(dense).num_parameters()


def test_going_back_asks_record_and_config_and_never_guesses(tmp_path: Path) -> None:
    dense, moe = save_tiny(tmp_path / "dense", "mistral"), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=2, noise=0.0)
    (moe / "moeify.json").unlink()
    with pytest.raises(CheckpointError, match="made of mistral or phi3"):  # the others have no window
        moeify.extract(moe, tmp_path / "back", expert=0)
    edit_config(moe, dense_model_type="llama")
    with pytest.raises(CheckpointError, match="has a window of 5, which llama has not"):
        moeify.extract(moe, tmp_path / "back", expert=0)
    edit_config(moe, dense_model_type="mistral")
    moeify.extract(moe, tmp_path / "back", expert=0)
    assert read_config(tmp_path / "back")["sliding_window"] == 5
    assert moeify.verify(dense, tmp_path / "back").bit_exact


def test_a_mixtral_of_others_becomes_the_dense_type_that_its_config_names(tmp_path: Path) -> None:
    """What MixtralConfig assumes where config.json is silent is written out, as the dense class assumes otherwise."""
    moeify.upcycle(save_tiny(tmp_path / "dense", "llama"), tmp_path / "moe", num_experts=2, noise=0.0)
    (tmp_path / "moe" / "moeify.json").unlink()
    silent = ("rms_norm_eps", "rope_theta", "rope_parameters", "max_position_embeddings", "sliding_window", "head_dim")
    edit_config(tmp_path / "moe", **dict.fromkeys(silent, ...), dense_model_type="mistral")
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=0)
    config = AutoConfig.from_pretrained(tmp_path / "back")
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 1e6)
    assert config.sliding_window is None
    assert moeify.verify(tmp_path / "moe", tmp_path / "back").relative_diff <= 1e-6


@pytest.mark.parametrize(
    ("name", "cannot"),
    [
        ("TinyLlama", set()),
        ("Llama-3.2", {"SGLang", "mlx-lm"}),
        ("Mistral-v0.1", {"SGLang", "llama.cpp", "mlx-lm"}),
        ("Mistral-Nemo", {"SGLang", "mlx-lm"}),
    ],
)
def test_engines_that_compute_something_else_are_named(tmp_path: Path, name: str, cannot: set[str]) -> None:
    moeify.upcycle(save_published(tmp_path / "dense", name), tmp_path / "moe", num_experts=2)
    config = read_config(tmp_path / "moe")
    conversion, *_ = CONVERSIONS[config_type(name)]
    assert {engine.name for engine in conversion.engines if engine.says(config).startswith("no")} == cannot
    card = (tmp_path / "moe" / "README.md").read_text()
    assert all(f"| {engine} | no: " in card for engine in cannot)


def config_type(name: str) -> str:
    return str(PUBLISHED[name]["model_type"])
