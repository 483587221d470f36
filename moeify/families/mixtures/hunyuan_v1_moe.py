"""HunYuan's mixtures: a shared expert as wide as the others beside them."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.dense.hunyuan_v1_dense import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout

LAYOUT = MoeLayout(
    model_type="hunyuan_v1_moe",
    class_prefix="HunYuanMoEV1",
    router="mlp.gate.wg.weight",
    chooser="mlp.gate",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("intermediate_size", layers=32, hidden=4096, width=11008, vocab=290943),
    moe_layers=names.all_layers(32),
    num_experts_keys=("num_experts", "num_local_experts"),
    top_k_keys=("moe_topk", "num_experts_per_tok"),
    rest=DENSE.rest(names.gated("mlp.shared_mlp")),
)
