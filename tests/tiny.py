"""Tiny dense checkpoints of every family and head, saved by transformers itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

import moeify
from moeify.errors import ConfigError
from moeify.families.registry import CONVERSIONS

VOCAB, LAYERS = 64, 4
_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_LANGUAGE_HEADS = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "LMHeadModel")
_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "type_vocab_size": 1},
    "xlm-roberta": _ENCODER,
    "camembert": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 16},
    "mpnet": _ENCODER,
    "modernbert": {
        **_ENCODER,
        "local_attention": 8,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    },
    "distilbert": {
        "vocab_size": VOCAB,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": LAYERS,
        "n_heads": 4,
        "max_position_embeddings": 64,
    },
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "pooler_hidden_size": 32,
    },
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "pad_token_id": 0},
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 16},
    "mistral": {**_DECODER, "head_dim": 16, "sliding_window": 5},
    "ministral": {
        **_DECODER,
        "head_dim": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma2": {**_DECODER, "head_dim": 16, "sliding_window": 5},
    "gemma3_text": {
        **_DECODER,
        "head_dim": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "smollm3": {**_DECODER, "no_rope_layers": [1, 0, 1, 0]},
    "exaone4": {**_DECODER, "sliding_window": 5, "sliding_window_pattern": 2},
    "internlm3": {**_DECODER, "head_dim": 16},
    "phi3": {**_DECODER, "original_max_position_embeddings": 64, "sliding_window": 6},
    "granite": {
        **_DECODER,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
    },
    "ernie4_5": {**_DECODER, "head_dim": 16},
    "hunyuan_v1_dense": {**_DECODER, "head_dim": 16},
    "cohere2": {**_DECODER, "sliding_window": 8, "logit_scale": 0.5},
    "lfm2": {
        **_DECODER,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "olmo2": {**_DECODER, "intermediate_size": 64, "eos_token_id": 1},
}
_QWEN35 = {
    **_DECODER,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SIZES["qwen3_5_text"] = _QWEN35
SIZES["qwen3_5"] = {
    "text_config": _QWEN35,
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    },
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
SIZES["qwen3_vl"] = {
    **SIZES["qwen3_5"],
    "text_config": {
        **_DECODER,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]},
    },
    "vision_config": {**SIZES["qwen3_5"]["vision_config"], "depth": 2, "deepstack_visual_indexes": [0, 1]},
}
_EYES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
SIZES["llava+llama"] = {
    "text_config": {**_DECODER, "model_type": "llama"},
    "vision_config": {**_EYES, "model_type": "clip_vision_model", "projection_dim": 8},
    "image_token_id": 60,
}
SIZES["llava+mistral"] = {**SIZES["llava+llama"], "text_config": {**SIZES["mistral"], "model_type": "mistral"}}
SIZES["mistral3+mistral"] = {
    **SIZES["llava+mistral"],
    "vision_config": {**_EYES, "image_size": 16, "model_type": "pixtral"},
    "spatial_merge_size": 2,
    "tie_word_embeddings": False,
}
HEADS = {
    name: [known[0].dense.class_prefix + head for head in known[0].heads or known[0].dense.heads]
    for name, known in CONVERSIONS.items()
}
FAMILY_HEADS = [(family, head) for family, heads in HEADS.items() for head in heads]
LM_HEADS = {
    "bert": "BertForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""The types that tests of everything but families are run on."""


def outer_type(model_type: str) -> str:
    """What config.json calls a type: of a model around a language model without that one's."""
    return model_type.partition("+")[0]


def texts_of(model_type: str) -> dict[str, Any]:
    """What the config of a model around a language model says of that one's type; nothing for others."""
    inner = model_type.partition("+")[2]
    return {"text_config": {"model_type": inner}} if inner else {}


def sizes_of(family: str) -> dict[str, Any]:
    """The keys of a tiny config."""
    return SIZES.get(family, _DECODER)


def lm_head(family: str) -> str:
    """The class of a type that predicts tokens."""
    heads = [head for head in HEADS[family] if head.endswith(_LANGUAGE_HEADS)]
    return next((head for head in heads if head.endswith("ForMaskedLM")), heads[0])


def tolerance(family: str, dtype: str = "float32") -> float:
    """How far a mixture may lie from its dense model.

    LFM2-MoE adds 1e-6 to what it divides by. OLMo 2's and Gemma 3's norms behind their FFNs scale up
    what rounding left. The
    state of linear attention makes more of rounding: in bfloat16 such a dense model is 7 % off what it is in
    float32.
    """
    linear = family.startswith("qwen3_5")
    if dtype == "bfloat16":  # whose sums are taken in other orders
        return 8e-2 if linear else 2e-2
    return {"lfm2": 1e-5, "gemma3_text": 2e-6}.get(family, 3e-6 if linear else 1e-6)


def layers_of(dense: Path, wanted: str) -> str:
    """``wanted``, or all layers where the mixture of a checkpoint has no way to leave others dense."""
    try:
        moeify.upcycle(dense, layers=wanted, dry_run=True)
    except ConfigError:
        return "all"
    return wanted


def _with_options(sizes: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What a model of several parts is told of its text goes to that part, ties to the whole as well."""
    if "text_config" not in sizes:
        return sizes | options
    ties = {key: options[key] for key in ("tie_word_embeddings",) if key in options}
    return sizes | {"text_config": sizes["text_config"] | options} | ties


FAMILIES_ONCE = [(family, head) for family, head in FAMILY_HEADS if family in LM_HEADS or head == lm_head(family)]
"""Every head of the types that everything is run on, and one of each other."""


def save_tiny(folder: Path, family: str, head: str | None = None, dtype: str = "float32", **options: Any) -> Path:
    """Save a random dense model; every weight, biases included, is far from its default."""
    torch.manual_seed(7)
    config_class = transformers.CONFIG_MAPPING[outer_type(family)]
    # A copy: transformers writes into the dicts that it is given, which tests share.
    config = config_class(**_with_options(sizes_of(family), copy.deepcopy(options)))
    model = getattr(transformers, head or lm_head(family))(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.3 * parameter.shape[-1] ** -0.5
            is_norm = "norm" in name.lower() or "ln_" in name
            offset = 1.0 if is_norm and name.endswith("weight") else 0.0
            parameter.normal_(offset, spread)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
