"""DeepSeek-V3, GLM-4-MoE, MiniMax-M2 and LFM2-MoE: sigmoid scores and a bias for choosing."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    DECODER_HEADS,
    DECODER_OUTER,
    FFN,
    LLAMA_NORMS,
    QK_NORMS,
    all_layers,
    decoder_dims,
    gated,
    late_layers,
    single_experts,
)

__all__ = ["DEEPSEEK_V3", "GLM4_MOE", "LFM2_MOE", "MINIMAX_M2"]

_GROUPED = RouterRule(
    scores="sigmoid",
    norm_key="norm_topk_prob",
    selection_bias="mlp.gate.e_score_correction_bias",
    groups=("n_group", "topk_group"),
    scaling_key="routed_scaling_factor",
)
_EXPERT_KEYS = ("n_routed_experts", "num_local_experts", "num_experts")
_LATENT_ATTENTION = tuple(
    f"self_attn.{part}"
    for part in (
        "q_proj.weight", "q_a_proj.weight", "q_a_proj.bias", "q_a_layernorm.weight",
        "q_b_proj.weight", "kv_a_proj_with_mqa.weight", "kv_a_proj_with_mqa.bias",
        "kv_a_layernorm.weight", "kv_b_proj.weight", "o_proj.weight", "o_proj.bias",
    )
)  # fmt: skip

DEEPSEEK_V3 = MoeLayout(
    model_type="deepseek_v3",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=single_experts("mlp"),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims(
        "moe_intermediate_size", layers=61, hidden=7168, width=2048, vocabulary=129280
    ),
    moe_layers=late_layers("first_k_dense_replace", first=3, default=61),
    num_experts_keys=_EXPERT_KEYS,
    shared_keys=("n_shared_experts",),
    rule=_GROUPED,
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *_LATENT_ATTENTION),
        ffn=FFN,
        shared=gated("mlp.shared_experts"),
        heads=DECODER_HEADS,
        ignored=("model.layers.61.",),
    ),
)

GLM4_MOE = MoeLayout(
    model_type="glm4_moe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=single_experts("mlp"),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims(
        "moe_intermediate_size", layers=46, hidden=4096, width=1408, vocabulary=151552
    ),
    moe_layers=late_layers("first_k_dense_replace", first=1, default=46),
    num_experts_keys=_EXPERT_KEYS,
    shared_keys=("n_shared_experts",),
    rule=_GROUPED,
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, *QK_NORMS),
        ffn=FFN,
        shared=gated("mlp.shared_experts"),
        heads=DECODER_HEADS,
        ignored=("model.layers.46.", "model.layers.92."),
    ),
)

MINIMAX_M2 = MoeLayout(
    model_type="minimax_m2",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=single_experts("block_sparse_moe", numbered=True),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=62, hidden=3072, width=1536, vocabulary=200064),
    moe_layers=all_layers(62),
    num_experts_keys=("num_local_experts", "num_experts"),
    rule=RouterRule(scores="sigmoid", selection_bias="block_sparse_moe.e_score_correction_bias"),
    loaded_selection_bias="mlp.e_score_correction_bias",
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *QK_NORMS),
        heads=DECODER_HEADS,
    ),
)

LFM2_MOE = MoeLayout(
    model_type="lfm2_moe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="feed_forward.gate.weight",
    experts=single_experts("feed_forward", numbered=True),
    norm="ffn_norm.weight",
    norm_bias=None,
    dims=decoder_dims(
        "moe_intermediate_size", layers=32, hidden=2048, width=1792, vocabulary=65536
    ),
    moe_layers=late_layers("num_dense_layers", first=2, default=32),
    rule=RouterRule(
        scores="sigmoid",
        norm_key="norm_topk_prob",
        selection_bias="feed_forward.expert_bias",
        scaling_key="routed_scaling_factor",
    ),
    rest=Rest(
        outer=("embed_tokens.weight", "embedding_norm.weight"),
        per_layer=(
            "operator_norm.weight",
            "ffn_norm.weight",
            *(f"self_attn.{part}_proj.weight" for part in ("q", "k", "v", "out")),
            "self_attn.q_layernorm.weight",
            "self_attn.k_layernorm.weight",
            *(
                f"conv.{part}.{kind}"
                for part in ("conv", "in_proj", "out_proj")
                for kind in ("weight", "bias")
            ),
        ),
        ffn=gated("feed_forward", numbered=True),
        heads=DECODER_HEADS,
        ties_by_default=True,
    ),
)
