"""InternLM3, whose classes in transformers are Llama's."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import dense_names as names
from moeify.families.dense.llama import LAYOUT as LLAMA
from moeify.families.values import Config, Dims

DEFAULTS = {
    "vocab_size": 128512,
    "hidden_size": 4096,
    "intermediate_size": 10240,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 2,
}
"""What InternLM3Config assumes where config.json is silent; MixtralConfig differs."""
_OWN_CLASS = "InternLM3"  # in the code that came with the first files
_SPELLINGS = {"qkv_bias": "attention_bias", "bias": "mlp_bias"}


def _canonical(config: Config) -> Config:
    """``config`` with the classes and keys of transformers, where files have their own."""
    result = {_SPELLINGS.get(key, key): value for key, value in names.filled(DEFAULTS)(config).items()}
    named = config.get("architectures")
    if isinstance(named, list) and named and str(named[0]).startswith(_OWN_CLASS):
        result["architectures"] = [str(named[0]).replace(_OWN_CLASS, LLAMA.class_prefix, 1)]
    return result


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims(config, DEFAULTS)


LAYOUT = replace(LLAMA, model_type="internlm3", dims=_dims, canonical=_canonical)
