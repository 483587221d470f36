"""Tiny random mixtures of many model types, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from moeify.modeling.configuration_moe import BertMoeConfig, GPT2MoeConfig
from moeify.modeling.modeling_moe import BertMoeForMaskedLM, GPT2MoeLMHeadModel

EXPERTS, TOP_K, LAYERS, HIDDEN = 8, 2, 2, 16

_DECODER = {
    "vocab_size": 60,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": TOP_K,
    "intermediate_size": 12,
    "moe_intermediate_size": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_GROUPED = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "routed_scaling_factor": 1.5,
}
_SPECS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {"num_experts": EXPERTS, "shared_expert_intermediate_size": 8, "norm_topk_prob": False},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {"num_experts": EXPERTS, "head_dim": 8}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": EXPERTS}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {"num_experts": EXPERTS}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {**_LATENT, **_GROUPED}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": EXPERTS, "head_dim": 8}),
    "glm4_moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM", {**_GROUPED, "head_dim": 8}),
    "granitemoe": ("GraniteMoeConfig", "GraniteMoeForCausalLM", {"num_local_experts": EXPERTS}),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        {"moe_num_experts": EXPERTS, "moe_k": TOP_K, "moe_layer_start_index": 1},
    ),
    "minimax_m2": ("MiniMaxM2Config", "MiniMaxM2ForCausalLM", {"num_local_experts": EXPERTS}),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        "Lfm2MoeForCausalLM",
        {"num_experts": EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "llama4_text": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            "num_local_experts": EXPERTS,
            "interleave_moe_layer_step": 1,
            "head_dim": 8,
            "intermediate_size_mlp": 12,
            "attention_chunk_size": 64,
        },
    ),
}
OWN = ("bert_moe", "gpt2_moe")
MODEL_TYPES = (*OWN, *_SPECS)
REQUIRED = (*OWN, *list(_SPECS)[:8])


def build(model_type: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A mixture whose experts differ, with every parameter and correction bias away from zero."""
    torch.manual_seed(seed)
    if model_type == "bert_moe":
        config: Any = BertMoeConfig(
            vocab_size=60,
            hidden_size=HIDDEN,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
            num_experts=EXPERTS,
            num_experts_per_tok=TOP_K,
            moe_layers=[0, 2],
            **options,
        )
        model = BertMoeForMaskedLM(config)
    elif model_type == "gpt2_moe":
        config = GPT2MoeConfig(
            vocab_size=60,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=2,
            n_positions=64,
            num_experts=EXPERTS,
            num_experts_per_tok=TOP_K,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
            **options,
        )
        model = GPT2MoeLMHeadModel(config)
    else:
        config_name, class_name, keys = _SPECS[model_type]
        config = getattr(transformers, config_name)(**{**_DECODER, **keys, **options})
        model = getattr(transformers, class_name)(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "inv_freq" not in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
            if "correction_bias" in name:
                tensor.abs_().mul_(0.3)  # so that no score for choosing is below that of a masked group, 0
    model.tie_weights()
    return model.eval()


def save(model_type: str, folder: Path, **options: Any) -> PreTrainedModel:
    """Save a mixture into ``folder`` and return it."""
    model = build(model_type, **options)
    model.save_pretrained(folder)
    return model


def batch(seed: int = 5) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
