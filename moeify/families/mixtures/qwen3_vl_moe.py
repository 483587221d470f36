"""Qwen3-VL-MoE, whose files hold experts turned round and whose class does not."""

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.dense.qwen3_vl import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout

LAYOUT = MoeLayout(
    model_type="qwen3_vl_moe",
    class_prefix="Qwen3VLMoe",
    prefixes=DENSE.prefixes,
    experts=names.fused_experts("mlp.experts.gate_up_proj", "mlp.experts.down_proj", transposed=True),
    turned_when_loaded=True,
    dims=names.decoder_dims("moe_intermediate_size", layers=24, hidden=2048, width=1408, vocab=151936),
    moe_layers=names.stepped_layers(24),
    num_experts_keys=names.LOCAL_KEYS,
    former_num_experts_key="num_experts",
    rest=replace(DENSE.rest(), towers=DENSE.towers),
)
