"""Cohere2: attention and FFN read the same normalised input, side by side."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout
from moeify.families.rope import canonical_rope
from moeify.families.values import Config, positive

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
"""What Cohere2Config and Cohere2MoeConfig assume where config.json is silent."""
_WITH_FFN_NORM = "post_attention_layernorm.weight"


def _canonical(config: Config) -> Config:
    """The class takes no width of a head, and once read its windows out of one number."""
    config = canonical_rope({**DEFAULTS, **config})
    period = positive(
        {"sliding_window_pattern": config.pop("sliding_window_pattern", None)}, "sliding_window_pattern", 4
    )
    if config.get("layer_types") is None:
        config["layer_types"] = [
            "sliding_attention" if (layer + 1) % period else "full_attention"
            for layer in range(positive(config, "num_hidden_layers"))
        ]
    return {**config, "head_dim": positive(config, "hidden_size") // positive(config, "num_attention_heads")}


LAYOUT = DenseLayout(
    model_type="cohere2",
    class_prefix="Cohere2",
    norm="input_layernorm.weight",
    outer=names.DECODER_OUTER,
    per_layer={
        **{name: shape for name, shape in names.LLAMA_LAYER.items() if name != _WITH_FFN_NORM},
        **names.ATTENTION_BIASES,
    },
    optional=frozenset(names.ATTENTION_BIASES),
    ffn=names.GATED_FFN,
    heads=names.heads("Model", "ForCausalLM"),
    ties_by_default=True,
    dims=lambda config: names.grouped_query_dims(config, DEFAULTS),
    canonical=_canonical,
)
