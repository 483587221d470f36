"""LFM2-MoE: short convolutions, sigmoid scores and a bias for choosing."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule

LAYOUT = MoeLayout(
    model_type="lfm2_moe",
    class_prefix="Lfm2Moe",
    router="feed_forward.gate.weight",
    experts=names.single_experts("feed_forward", numbered=True),
    norm="ffn_norm.weight",
    dims=names.decoder_dims("moe_intermediate_size", layers=32, hidden=2048, width=1792, vocab=65536),
    moe_layers=names.late_layers("num_dense_layers", first=2, default=32),
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
            *(f"conv.{part}.{kind}" for part in ("conv", "in_proj", "out_proj") for kind in ("weight", "bias")),
        ),
        ffn=names.gated("feed_forward", numbered=True),
        ties_by_default=True,
    ),
)
