"""SmolLM3, some of whose layers know no positions."""

from __future__ import annotations

from moeify.families import dense_names as names

LAYOUT = names.decoder_layout(
    "smollm3",
    "SmolLM3",
    {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    per_layer={**names.LLAMA_LAYER, **names.ATTENTION_BIASES},
    ffn=(*names.GATED_FFN, *names.FFN_BIAS_ROLES),
    ties_by_default=True,
    only_if=names.if_biased(*names.FFN_BIASES),
    # Present when attention_bias is true.
    optional=frozenset(names.ATTENTION_BIASES),
)
