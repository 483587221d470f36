"""Qwen3-Next: linear attention and a names.gated shared expert."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule

LAYOUT = MoeLayout(
    model_type="qwen3_next",
    class_prefix="Qwen3Next",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=48, hidden=2048, width=512, vocab=151936),
    moe_layers=names.stepped_layers(48),
    rule=RouterRule(norm_key="norm_topk_prob"),
    norm_offset=1.0,
    rest=Rest(
        per_layer=(*names.LINEAR_ATTENTION, "linear_attn.in_proj_qkvz.weight", "linear_attn.in_proj_ba.weight"),
        ffn=names.FFN,
        shared=names.SHARED_EXPERT,
        ignored=("mtp.",),
    ),
)
