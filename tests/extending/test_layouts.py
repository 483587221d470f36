"""What layouts and conversions can say beyond Llama's: joined tensors, extras, kinds, towers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import moeify
from moeify.families import dense_names, registry
from moeify.families.base import DenseLayout, Head
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.moe_layout import ExtraTensor
from moeify.families.registry import register_conversion
from moeify.families.values import Config, text_config
from tests.extending.decoders import weights
from tests.families.test_contract import load_strictly
from tests.tiny import save_tiny


def _to_glm4(config: Config, settings: MoeSettings) -> Config:
    return {
        **config,
        "head_dim": config["head_dim"],
        "partial_rotary_factor": 1.0,
        "use_qk_norm": True,
        "moe_intermediate_size": config["intermediate_size"],
        "first_k_dense_replace": 0,
        "n_routed_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "routed_scaling_factor": 0.75,
        "norm_topk_prob": True,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extras_are_weighted_copies_and_constants_with_a_dtype_of_their_own(
    clean: None, tmp_path: Path, dtype: str
) -> None:
    """A quarter of the output is the shared expert's, three quarters are the routed ones'."""
    qwen3, glm4 = registry.DENSE_LAYOUTS["qwen3"], registry.MOE_LAYOUTS["glm4_moe"]
    shared = "mlp.shared_experts.{}_proj.weight"
    register_conversion(
        Conversion(
            dense=qwen3,
            moe=glm4,
            to_moe=_to_glm4,
            to_dense=dict,
            extras=(
                ExtraTensor(name=shared.format("gate"), shape=("F", "H"), role="gate"),
                ExtraTensor(name=shared.format("up"), shape=("F", "H"), role="up"),
                ExtraTensor(name=shared.format("down"), shape=("H", "F"), role="down", weight=0.25),
                ExtraTensor(name="mlp.gate.e_score_correction_bias", shape=(4,), mean=1.0, dtype="F32"),
            ),
        )
    )
    dense, moe = save_tiny(tmp_path / "dense", "qwen3", dtype=dtype), tmp_path / "moe"
    report = moeify.upcycle(dense, moe, num_experts=4, noise=0.0, arch="glm4_moe")
    model = load_strictly(moe)
    assert report.params_total == sum(p.numel() for p in model.parameters())
    bias = weights(moe)["model.layers.0.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32 and bias.eq(1).all()
    down = weights(dense)["model.layers.0.mlp.down_proj.weight"]
    copied = weights(moe)["model.layers.0.mlp.shared_experts.down_proj.weight"]
    assert copied.dtype == down.dtype and torch.equal(copied, down * 0.25)
    assert moeify.inspect(moe).problems == []
    assert moeify.verify(dense, moe).relative_diff <= (1e-6 if dtype == "float32" else 2e-2)


def _qwen35_dims(config: Config) -> dict[str, int]:
    text = text_config(config)
    keys, values = (text[f"linear_{part}_head_dim"] * text[f"linear_num_{part}_heads"] for part in ("key", "value"))
    return {
        **dense_names.grouped_query_dims(text),
        "N": text["linear_num_value_heads"],
        "I": values,
        "X": 2 * keys + values,
        "W": text["linear_value_head_dim"],
        "Q": text["linear_conv_kernel_dim"],
    }


LINEAR = {
    "dt_bias": ("N",),
    "A_log": ("N",),
    "conv1d.weight": ("X", 1, "Q"),
    "norm.weight": ("W",),
    "out_proj.weight": ("H", "I"),
    "in_proj_qkv.weight": ("X", "H"),
    "in_proj_z.weight": ("I", "H"),
    "in_proj_a.weight": ("N", "H"),
    "in_proj_b.weight": ("N", "H"),
}
FULL = {
    "q_proj.weight": ("2A", "H"),
    "k_proj.weight": ("K", "H"),
    "v_proj.weight": ("K", "H"),
    "o_proj.weight": ("H", "A"),
    "q_norm.weight": ("D",),
    "k_norm.weight": ("D",),
}
SHARED = {"gate_proj": (16, "H"), "up_proj": (16, "H"), "down_proj": ("H", 16)}
TEXT_KEYS = ("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts", "num_experts_per_tok")


def _to_qwen35_moe(config: Config, settings: MoeSettings) -> Config:
    text = {
        **text_config(config),
        "moe_intermediate_size": text_config(config)["intermediate_size"],
        "shared_expert_intermediate_size": 16,
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
    }
    if "text_config" not in config:
        return text
    vision = config["vision_config"] | {"model_type": "qwen3_5_moe_vision"}
    text["model_type"] = "qwen3_5_moe_text"
    return {**config, "text_config": text, "vision_config": vision}


def _from_qwen35_moe(config: Config) -> Config:
    text = {k: v for k, v in text_config(config).items() if k not in TEXT_KEYS}
    if "text_config" not in config:
        return text
    text["model_type"] = "qwen3_5_text"
    vision = config["vision_config"] | {"model_type": "qwen3_5_vision"}
    return {**config, "text_config": text, "vision_config": vision}


@pytest.mark.parametrize("seeing", [False, True], ids=["text", "vision"])
def test_kinds_of_layers_and_a_tower_beside_the_text_model(clean: None, tmp_path: Path, seeing: bool) -> None:
    model_type, suffix = ("qwen3_5", "") if seeing else ("qwen3_5_text", "_text")
    head = "ForConditionalGeneration" if seeing else "ForCausalLM"
    prefix = "model.language_model." if seeing else "model."
    dense = DenseLayout(
        model_type=model_type,
        class_prefix="Qwen3_5",
        prefixes=(prefix,),
        outer=dense_names.DECODER_OUTER,
        ffn=dense_names.GATED_FFN,
        dims=_qwen35_dims,
        per_layer={"input_layernorm.weight": ("H",), "post_attention_layernorm.weight": ("H",)},
        kinds=lambda config: text_config(config)["layer_types"],
        by_kind={
            "linear_attention": {f"linear_attn.{n}": shape for n, shape in LINEAR.items()},
            "full_attention": {f"self_attn.{n}": shape for n, shape in FULL.items()},
        },
        heads={head: Head(prefix=prefix, tensors={"lm_head.weight": ("V", "H")})},
        towers=("model.visual.",),
    )
    moe = registry.MOE_LAYOUTS[f"qwen3_5_moe{suffix}"]
    moe = registry.MOE_LAYOUTS[f"qwen3_5_moe{suffix}"] = replace(moe, model_type=f"qwen3_5_moe{suffix}")
    shared = [ExtraTensor(name=f"mlp.shared_expert.{n}.weight", shape=s) for n, s in SHARED.items()]
    gate = ExtraTensor(name="mlp.shared_expert_gate.weight", shape=(1, "H"))
    register_conversion(
        Conversion(dense=dense, moe=moe, to_moe=_to_qwen35_moe, to_dense=_from_qwen35_moe, extras=(*shared, gate))
    )
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
    }
    options = {"text_config": text, "vision_config": vision} if seeing else text
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **options)
    model = getattr(transformers, f"Qwen3_5{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "dense")
    said = moeify.inspect(tmp_path / "dense")
    assert said.problems == [] and said.params_total == model.num_parameters()
    assert ("towers" in said.parts) == seeing
    report = moeify.upcycle(tmp_path / "dense", tmp_path / "moe", num_experts=4, noise=0.0)
    assert report.params_total == load_strictly(tmp_path / "moe").num_parameters()
    assert moeify.inspect(tmp_path / "moe").problems == []
    assert moeify.verify(tmp_path / "dense", tmp_path / "moe").relative_diff <= 5e-6  # linear attention rounds
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=1)
    before, after = weights(tmp_path / "dense"), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
