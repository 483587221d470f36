"""ERNIE 4.5 MoE."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.moe_layout import DECODER_HEADS, MoeLayout, Rest, RouterRule
from moeify.families.values import Config, positive


def _ernie_layers(config: Config) -> tuple[int, ...]:
    total = positive(config, "num_hidden_layers", 28)
    step = positive(config, "moe_layer_interval", 1)
    first, last = config.get("moe_layer_start_index", 1), config.get("moe_layer_end_index", -1)
    last = total - 1 if last == -1 else last
    return tuple(i for i in range(total) if (i + 1) % step == 0 and first <= i <= last)


LAYOUT = MoeLayout(
    model_type="ernie4_5_moe",
    class_prefix="Ernie4_5_Moe",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=28, hidden=2560, width=1536, vocab=103424),
    moe_layers=_ernie_layers,
    num_experts_keys=("moe_num_experts", "num_experts"),
    top_k_keys=("moe_k", "num_experts_per_tok"),
    shared_keys=("moe_num_shared_experts",),
    rule=RouterRule(
        selection_bias="mlp.moe_statics.e_score_correction_bias", selection_bias_axis=1, selection_bias_trained=True
    ),
    loaded_selection_bias="mlp.gate.moe_statics.e_score_correction_bias",
    rest=Rest(
        per_layer=names.LLAMA_BIASED,
        ffn=names.gated("mlp", biases=True),
        shared=names.gated("mlp.shared_experts", biases=True),
        heads=(*DECODER_HEADS, "lm_head.bias"),
        ties_by_default=True,
        ignored=("model.mtp_", "mtp"),
    ),
)
