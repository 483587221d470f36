"""Names that many dense decoders share, so that a type's file holds only what is its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moeify.families.base import DenseLayout, FfnTensor, Head
from moeify.families.rope import canonical_rope
from moeify.families.values import Config, Dims, Shape, num_labels, positive

DECODER_OUTER: Mapping[str, Shape] = {"embed_tokens.weight": ("V", "H"), "norm.weight": ("H",)}
LLAMA_LAYER: Mapping[str, Shape] = {
    "input_layernorm.weight": ("H",),
    "post_attention_layernorm.weight": ("H",),
    "self_attn.q_proj.weight": ("A", "H"),
    "self_attn.k_proj.weight": ("K", "H"),
    "self_attn.v_proj.weight": ("K", "H"),
    "self_attn.o_proj.weight": ("H", "A"),
}
QKV_BIASES: Mapping[str, Shape] = {
    "self_attn.q_proj.bias": ("A",),
    "self_attn.k_proj.bias": ("K",),
    "self_attn.v_proj.bias": ("K",),
}
ATTENTION_BIASES: Mapping[str, Shape] = {**QKV_BIASES, "self_attn.o_proj.bias": ("H",)}
FFN_BIASES: Mapping[str, Shape] = {
    "mlp.gate_proj.bias": ("F",),
    "mlp.up_proj.bias": ("F",),
    "mlp.down_proj.bias": ("H",),
}
FFN_BIAS_ROLES = tuple(
    FfnTensor(role=f"{role}_bias", name=f"mlp.{role}_proj.bias", shape=("H",) if role == "down" else ("F",))
    for role in ("gate", "up", "down")
)
"""Beside ``GATED_FFN`` where a class has them."""


def if_biased(*biases: str) -> dict[str, Callable[[Config], bool]]:
    """That tensors are there where ``mlp_bias`` says so."""
    return dict.fromkeys(biases, lambda config: bool(config.get("mlp_bias")))


GATED_FFN = (
    FfnTensor(role="gate", name="mlp.gate_proj.weight", shape=("F", "H")),
    FfnTensor(role="up", name="mlp.up_proj.weight", shape=("F", "H")),
    FfnTensor(role="down", name="mlp.down_proj.weight", shape=("H", "F")),
)
_SCORE: Mapping[str, Shape] = {"score.weight": ("C", "H")}
DECODER_HEADS: Mapping[str, Head] = {
    "Model": Head(),
    "ForCausalLM": Head(
        prefix="model.", tensors={"lm_head.weight": ("V", "H")}, tied={"lm_head.weight": "model.embed_tokens.weight"}
    ),
    "ForSequenceClassification": Head(prefix="model.", tensors=_SCORE),
    "ForTokenClassification": Head(prefix="model.", tensors={**_SCORE, "score.bias": ("C",)}),
    "ForQuestionAnswering": Head(
        prefix="transformer.", tensors={"qa_outputs.weight": (2, "H"), "qa_outputs.bias": (2,)}
    ),
}


def heads(*names: str) -> dict[str, Head]:
    """Those of ``DECODER_HEADS`` that a type has classes for."""
    return {name: DECODER_HEADS[name] for name in names}


def seeing_heads(prefix: str, base: str | None = None, output: str = "") -> dict[str, Head]:
    """Those of a model with towers, whose text model has names that begin with ``prefix``.

    With ``base`` they do so without a head, by default without ``model.``; ``output`` leads the output matrix's.
    """
    name = f"{output}lm_head.weight"
    return {
        "Model": Head(prefix=prefix.removeprefix("model.") if base is None else base),
        "ForConditionalGeneration": Head(
            prefix=prefix, tensors={name: ("V", "H")}, tied={name: f"{prefix}embed_tokens.weight"}
        ),
    }


def filled(defaults: Config) -> Callable[[Config], Config]:
    """A ``canonical`` that writes out what the config class assumes, rotary positions too."""
    return lambda config: canonical_rope({**defaults, **config})


def grouped_query_dims(config: Config, defaults: Config | None = None, *, head_dim: int | None = None) -> Dims:
    """Symbols of a grouped-query decoder: A query width, K key and value width, D head width.

    ``defaults`` are the config class's own, ``head_dim`` its width of a head where it has one.
    """
    config = {**(defaults or {}), **config}
    hidden, count = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    size = positive(config, "head_dim", head_dim or hidden // count)
    return {
        "L": positive(config, "num_hidden_layers"),
        "H": hidden,
        "F": positive(config, "intermediate_size"),
        "V": positive(config, "vocab_size"),
        "A": count * size,
        "K": positive(config, "num_key_value_heads", count) * size,
        "D": size,
        "C": num_labels(config),
    }


def encoder_dims(
    *, vocab: int = 30522, hidden: int = 768, width: int = 3072, layers: int = 12
) -> Callable[[Config], Dims]:
    """Symbols of BERT and its kin, with a config class's own defaults."""

    def dims(config: Config) -> Dims:
        return {
            "L": positive(config, "num_hidden_layers", layers),
            "H": positive(config, "hidden_size", hidden),
            "F": positive(config, "intermediate_size", width),
            "V": positive(config, "vocab_size", vocab),
            "P": positive(config, "max_position_embeddings", 512),
            "T": positive(config, "type_vocab_size", 2),
            "C": num_labels(config),
        }

    return dims


def renamed_keys(**own: str) -> Callable[[Config], Config]:
    """A function that gives a config the type's own names, before which the general ones go, as in its class."""

    def canonical(config: Config) -> Config:
        general = {name: config[key] for key, name in own.items() if config.get(key) is not None}
        return {key: value for key, value in config.items() if key not in own} | general

    return canonical


def decoder_layout(
    model_type: str, class_prefix: str, defaults: Config, *, head_dim: int | None = None, **own: Any
) -> DenseLayout:
    """A decoder called as Llama is, but for what is its ``own``; ``defaults`` are its config class's."""
    as_llama = {"outer": DECODER_OUTER, "per_layer": LLAMA_LAYER, "ffn": GATED_FFN, "heads": DECODER_HEADS}
    return DenseLayout(
        model_type=model_type,
        class_prefix=class_prefix,
        dims=lambda config: grouped_query_dims(config, defaults, head_dim=head_dim),
        **(as_llama | own),
    )
