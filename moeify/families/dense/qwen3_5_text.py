"""The text model of Qwen3.5 alone: linear attention in three of four layers."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout, Head
from moeify.families.values import Config, Dims, Shape, positive, text_config, with_text

DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
"""What Qwen3_5TextConfig assumes where config.json is silent; Qwen3_5MoeTextConfig differs."""


def layer_kinds(config: Config) -> list[str]:
    """Which layers have linear attention, by the classes' rule."""
    text = text_config(config)
    if isinstance(text.get("layer_types"), list):
        return list(text["layer_types"])
    every = positive(text, "full_attention_interval", 4)
    layers = range(1, positive(text, "num_hidden_layers", 32) + 1)
    return ["linear_attention" if layer % every else "full_attention" for layer in layers]


def _dims(config: Config) -> Dims:
    text = {**DEFAULTS, **text_config(config)}
    keys, values = (
        positive(text, f"linear_{part}_head_dim") * positive(text, f"linear_num_{part}_heads")
        for part in ("key", "value")
    )
    return {
        **names.grouped_query_dims(text),
        "N": positive(text, "linear_num_value_heads"),
        "I": values,
        "X": 2 * keys + values,
        "W": positive(text, "linear_value_head_dim"),
        "Q": positive(text, "linear_conv_kernel_dim"),
    }


_LINEAR: dict[str, Shape] = {
    "linear_attn.dt_bias": ("N",),
    "linear_attn.A_log": ("N",),
    "linear_attn.conv1d.weight": ("X", 1, "Q"),
    "linear_attn.norm.weight": ("W",),
    "linear_attn.out_proj.weight": ("H", "I"),
    "linear_attn.in_proj_qkv.weight": ("X", "H"),
    "linear_attn.in_proj_z.weight": ("I", "H"),
    "linear_attn.in_proj_a.weight": ("N", "H"),
    "linear_attn.in_proj_b.weight": ("N", "H"),
}
_BIASES: dict[str, Shape] = {**names.ATTENTION_BIASES, "self_attn.q_proj.bias": ("2A",)}
_FULL: dict[str, Shape] = {
    **{name: shape for name, shape in names.LLAMA_LAYER.items() if name.startswith("self_attn.")},
    "self_attn.q_proj.weight": ("2A", "H"),  # beside the queries, a gate for what they find
    "self_attn.q_norm.weight": ("D",),
    "self_attn.k_norm.weight": ("D",),
    **_BIASES,
}

LAYOUT = DenseLayout(
    model_type="qwen3_5_text",
    class_prefix="Qwen3_5",
    outer=names.DECODER_OUTER,
    per_layer={name: shape for name, shape in names.LLAMA_LAYER.items() if "norm" in name},
    kinds=layer_kinds,
    by_kind={"linear_attention": _LINEAR, "full_attention": _FULL},
    ffn=names.GATED_FFN,
    heads={"TextModel": Head(), "ForCausalLM": names.DECODER_HEADS["ForCausalLM"]},
    dims=_dims,
    canonical=lambda config: with_text(config, names.filled(DEFAULTS)),
    ignored=("mtp.",),
    norm_offset=1.0,
    # Present when attention_bias is true, which no published Qwen3.5 sets.
    optional=frozenset(_BIASES),
)
