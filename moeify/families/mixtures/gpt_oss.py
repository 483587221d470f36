"""GPT-OSS, whose stacked experts interleave gate and up and have biases."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    LLAMA_NORMS,
    LOCAL_KEYS,
    all_layers,
    decoder_dims,
    fused_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="gpt_oss",
    class_prefix="GptOss",
    router="mlp.router.weight",
    router_bias="mlp.router.bias",
    experts=fused_experts(
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
        transposed=True, interleaved=True, biases=True,
    ),
    dims=decoder_dims("intermediate_size", layers=36, hidden=2880, width=2880, vocabulary=201088),
    moe_layers=all_layers(36),
    num_experts_keys=LOCAL_KEYS,
    top_k_keys=("num_experts_per_tok", "experts_per_token"),
    rest=Rest(
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, "self_attn.sinks"),
    ),
)  # fmt: skip
