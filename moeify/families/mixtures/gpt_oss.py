"""GPT-OSS, whose stacked experts interleave gate and up and have biases."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="gpt_oss",
    class_prefix="GptOss",
    router="mlp.router.weight",
    router_bias="mlp.router.bias",
    experts=names.fused_experts(
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj", transposed=True, interleaved=True, biases=True
    ),
    dims=names.decoder_dims("intermediate_size", layers=36, hidden=2880, width=2880, vocab=201088),
    moe_layers=names.all_layers(36),
    num_experts_keys=names.LOCAL_KEYS,
    top_k_keys=("num_experts_per_tok", "experts_per_token"),
    rest=Rest(per_layer=(*names.LLAMA_BIASED, "self_attn.sinks")),
)
