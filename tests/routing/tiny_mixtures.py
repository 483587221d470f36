"""A tiny random mixture of every supported kind, loaded as transformers loads it."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from moeify.modeling.configuration_moe import BertMoeConfig, GPT2MoeConfig
from moeify.modeling.modeling_moe import BertMoeForMaskedLM, GPT2MoeLMHeadModel

EXPERTS, TOP_K, HIDDEN, VOCABULARY, POSITIONS = 6, 2, 32, 128, 64
_DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True,
    "pad_token_id": 0,
}
_NATIVE = {
    "qwen2_moe": ("Qwen2Moe", {"mlp_only_layers": [1]}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8}),
    "mixtral": ("Mixtral", {}),
    "olmoe": ("Olmoe", {"norm_topk_prob": False}),
}
MODEL_TYPES = ("bert_moe", "gpt2_moe", *_NATIVE)


def mixture(model_type: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A model whose routers send different tokens to different experts."""
    torch.manual_seed(seed)
    own = {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "vocab_size": VOCABULARY}
    if model_type == "bert_moe":
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4}
        depth = {"num_hidden_layers": 3, "max_position_embeddings": POSITIONS}
        model = BertMoeForMaskedLM(BertMoeConfig(**(own | sizes | depth | options)))
    elif model_type == "gpt2_moe":
        sizes = {"n_embd": HIDDEN, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}
        model = GPT2MoeLMHeadModel(GPT2MoeConfig(**(own | sizes | {"moe_layers": [0, 2]} | options)))
    else:
        name, extra = _NATIVE[model_type]
        config = getattr(transformers, f"{name}Config")(**(_DECODER | extra | options))
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
