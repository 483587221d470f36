"""HunYuan's dense models."""

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout

DEFAULTS = {
    "vocab_size": 290943,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
"""What HunYuanDenseV1Config and HunYuanMoEV1Config assume where config.json is silent."""

LAYOUT = DenseLayout(
    model_type="hunyuan_v1_dense",
    class_prefix="HunYuanDenseV1",
    outer=names.DECODER_OUTER,
    per_layer={
        **names.LLAMA_LAYER,
        **names.ATTENTION_BIASES,
        "self_attn.query_layernorm.weight": ("D",),
        "self_attn.key_layernorm.weight": ("D",),
    },
    optional=frozenset(names.ATTENTION_BIASES),
    ffn=names.GATED_FFN,
    heads=names.heads("Model", "ForCausalLM", "ForSequenceClassification"),
    dims=lambda config: names.grouped_query_dims(config, DEFAULTS),
    canonical=names.filled(DEFAULTS),
)
