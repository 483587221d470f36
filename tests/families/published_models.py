"""Tiny configs of every MoE model type that inspect reads, saved as transformers saves them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

from moeify.modeling import modeling_moe
from moeify.modeling.configuration_moe import config_class
from moeify.modeling.moe_families import FAMILIES, moe_type
from tests.tiny import SIZES, lm_head, outer_type, sizes_of

EXPERTS, LAYERS = 4, 4
_DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LOCAL = {"num_local_experts": EXPERTS}
_LINEAR = {
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 12,
    "num_experts": EXPERTS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
_GROUPS = {
    "moe_intermediate_size": 8,
    "n_routed_experts": EXPERTS,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_LATENT = {
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_LLAMA4 = {**_LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2}
NATIVE: dict[str, dict[str, Any]] = {
    "qwen2_moe": {
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 12,
        "num_experts": EXPERTS,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {"moe_intermediate_size": 8, "num_experts": EXPERTS, "mlp_only_layers": [1]},
    "qwen3_next": {**_LINEAR, "mlp_only_layers": [1]},
    "qwen3_5_moe_text": _LINEAR,
    "mellum": {
        "moe_intermediate_size": 8,
        "num_experts": EXPERTS,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            f"{kind}_attention": {"rope_type": "default", "rope_theta": 5e5} for kind in ("sliding", "full")
        },
    },
    "mixtral": _LOCAL,
    "phimoe": {**_LOCAL, "attention_bias": True, "lm_head_bias": True},
    "olmoe": {"num_experts": EXPERTS, "attention_bias": True},
    "granitemoe": _LOCAL,
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": 2, "attention_bias": True},
    "cohere2_moe": {
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "expert_selection_fn": "sigmoid",
        "sliding_window": 8,
        "mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1),
        "prefix_dense_intermediate_size": 20,
    },
    "flex_olmo": {"num_experts": EXPERTS, "attention_bias": True},
    "gpt_oss": _LOCAL,
    "minimax_m2": _LOCAL,
    "deepseek_v3": {**_GROUPS, **_LATENT},
    "deepseek_v2": {**_GROUPS, **_LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    "kimi_k2": {**_GROUPS, **_LATENT, "n_group": 1},
    "glm4_moe_lite": {**_GROUPS, **_LATENT, "mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1)},
    "dots1": {**_GROUPS, "attention_bias": True},
    "exaone_moe": {
        "moe_intermediate_size": 8,
        "num_experts": EXPERTS,
        "sliding_window": 8,
        "first_k_dense_replace": 1,
    },
    "glm4_moe": {**_GROUPS, "use_qk_norm": True, "attention_bias": True},
    "ernie4_5_moe": {
        "moe_intermediate_size": 8,
        "moe_num_experts": EXPERTS,
        "moe_k": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 3,
        "moe_num_shared_experts": 1,
        "use_bias": True,
    },
    "granitemoehybrid": {
        **_LOCAL,
        "shared_intermediate_size": 12,
        "attention_bias": True,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "mamba_n_heads": 4,
        "mamba_d_state": 4,
        "mamba_chunk_size": 8,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "n_routed_experts": EXPERTS,
        "moe_intermediate_size": 8,
        "moe_shared_expert_intermediate_size": 12,
        "moe_latent_size": 12,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "jamba": {
        "num_experts": EXPERTS,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {
        "moe_intermediate_size": 8,
        "num_experts": EXPERTS,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"] * 2,
        "conv_bias": True,
    },
    "llama4_text": _LLAMA4,
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": 2,
        "moe_intermediate_size": 8,
        "rms_norm_eps": 1e-3,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 4096,
        "global_head_dim": 16,
        "attention_k_eq_v": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
}
_VISION = {
    "qwen3_5_moe": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
    },
    "llama4": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vision_output_dim": 16,
        "image_size": 8,
        "patch_size": 4,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    },
    "gemma4": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "position_embedding_size": 16,
    },
}
_VISION["qwen3_vl_moe"] = {**_VISION["qwen3_5_moe"], "deepstack_visual_indexes": [0]}
for _wrapper in ("llava+mixtral", "mistral3+mixtral"):
    _VISION[_wrapper] = next(
        sizes["vision_config"] for name, sizes in SIZES.items() if outer_type(name) == outer_type(_wrapper)
    )
_SEEING = {
    "llava+mixtral": "LlavaForConditionalGeneration",
    "mistral3+mixtral": "Mistral3ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
}
TEXTS: dict[str, dict[str, Any]] = {
    "qwen3_5_moe": _LINEAR,
    "qwen3_vl_moe": {
        "moe_intermediate_size": 8,
        "num_experts": EXPERTS,
        "mlp_only_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 1, 1]},
    },
    "llama4": _LLAMA4,
    "gemma4": NATIVE["gemma4_text"],
    **{key: {**_LOCAL, "model_type": "mixtral"} for key in ("llava+mixtral", "mistral3+mixtral")},
}
OWN = {moe_type(dense): dense for dense in FAMILIES}
MODEL_TYPES = (*OWN, *NATIVE, *_VISION)
BY_CLASS = ("bert_moe", "gpt2_moe", *NATIVE, *_VISION)
"""Types whose mixtures are computed by code of their own: moeify's classes share theirs."""


class _Kimi(DeepseekV3ForCausalLM):
    """Kimi-K2, which transformers knows under DeepSeek-V3's name alone."""

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        super().save_pretrained(folder, **options)
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text())
        named = {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]}
        path.write_text(json.dumps(config | named))


def tiny(model_type: str, *, tied: bool, **options: Any) -> PreTrainedModel:
    """A random model of a few thousand parameters."""
    torch.manual_seed(0)
    if model_type in OWN:
        dense = OWN[model_type]
        own = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_layers": [0, 2], "tie_word_embeddings": tied}
        config = config_class(dense)(**(sizes_of(dense) | own | options))
        name = lm_head(dense).replace(FAMILIES[dense].prefix, FAMILIES[dense].moe_prefix, 1)
        return getattr(modeling_moe, name)(config).eval()
    if model_type in _VISION:
        text = {**_DECODER, **TEXTS[model_type], **options}
        config = AutoConfig.for_model(
            outer_type(model_type),
            text_config={**text, "tie_word_embeddings": tied},
            vision_config=_VISION[model_type],
            tie_word_embeddings=tied,
        )
        return getattr(transformers, _SEEING[model_type])(config).eval()
    if model_type == "kimi_k2":
        return _Kimi(DeepseekV3Config(**_DECODER | NATIVE[model_type] | options, tie_word_embeddings=tied)).eval()
    settings = {**_DECODER, **NATIVE[model_type], "tie_word_embeddings": tied, **options}
    config = AutoConfig.for_model(model_type, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """As ``save_pretrained`` writes it."""
    model.save_pretrained(folder)
    return folder


def active_parameters(model: PreTrainedModel) -> int:
    """What one token uses, counted on the loaded model's own tensors."""
    config = getattr(model.config, "text_config", None) or model.config
    top_k = config.num_experts_per_tok
    total = 0
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        in_experts = ".experts." in name and ".shared" not in name
        total += count * top_k // EXPERTS if in_experts else count
    return total
