"""DeBERTa-v2 and v3."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from moeify.families.base import Head
from moeify.families.dense.bert import CHOICE, SPANS
from moeify.families.dense.bert import LAYOUT as BERT
from moeify.families.dense_names import encoder_dims
from moeify.families.values import Config, Dims, Shape, positive

_dims = encoder_dims(vocab=128100, hidden=1536, width=6144, layers=24)


def _all_dims(config: Config) -> Dims:
    types = config.get("type_vocab_size") or 1  # most have none
    dims = _dims({**config, "type_vocab_size": types})
    longest = config.get("max_relative_positions", -1)
    buckets = config.get("position_buckets", -1)
    reach = buckets if isinstance(buckets, int) and buckets > 0 else longest
    if not isinstance(reach, int) or reach < 1:
        reach = dims["P"]
    hidden = dims["H"]
    return {
        **dims,
        "R": 2 * reach,
        "W": positive(config, "conv_kernel_size", 1) if config.get("conv_kernel_size") else 1,
        "M": positive(config, "embedding_size", hidden),
        "Q": positive(config, "pooler_hidden_size", hidden),
    }


_POOLER: dict[str, Shape] = {"pooler.dense.weight": ("Q", "Q"), "pooler.dense.bias": ("Q",)}
_CLASSIFIER: dict[str, Shape] = {"classifier.weight": ("C", "Q"), "classifier.bias": ("C",)}
_CONV: dict[str, Shape] = {
    "encoder.conv.conv.weight": ("H", "H", "W"),
    "encoder.conv.conv.bias": ("H",),
    "encoder.conv.LayerNorm.weight": ("H",),
    "encoder.conv.LayerNorm.bias": ("H",),
}
_RELATIVE_NORM: dict[str, Shape] = {"encoder.LayerNorm.weight": ("H",), "encoder.LayerNorm.bias": ("H",)}


def _projection(part: str) -> dict[str, Shape]:
    return {f"attention.self.pos_{part}_proj.weight": ("H", "H"), f"attention.self.pos_{part}_proj.bias": ("H",)}


def _relative(config: Config) -> bool:
    return bool(config.get("relative_attention"))


def _positions(kind: str) -> Callable[[Config], bool]:
    """Whether attention has a projection of its own for positions of this kind."""
    return lambda config: _relative(config) and not config.get("share_att_key") and kind in _kinds(config)


def _kinds(config: Config) -> str | list[str]:
    return config.get("pos_att_type") or []


_ONLY_IF: dict[str, Callable[[Config], bool]] = {
    "embeddings.position_embeddings.weight": lambda config: bool(config.get("position_biased_input", True)),
    "embeddings.token_type_embeddings.weight": lambda config: bool(config.get("type_vocab_size")),
    "embeddings.embed_proj.weight": lambda config: _all_dims(config)["M"] != _all_dims(config)["H"],
    "encoder.rel_embeddings.weight": _relative,
    **dict.fromkeys(_RELATIVE_NORM, lambda config: "layer_norm" in str(config.get("norm_rel_ebd"))),
    **dict.fromkeys(_CONV, lambda config: bool(config.get("conv_kernel_size"))),
    **dict.fromkeys(_projection("key"), _positions("c2p")),
    **dict.fromkeys(_projection("query"), _positions("p2c")),
}
_MASKED = BERT.heads["ForMaskedLM"]

LAYOUT = replace(
    BERT,
    model_type="deberta-v2",
    class_prefix="DebertaV2",
    prefixes=("deberta.",),
    outer={
        "embeddings.word_embeddings.weight": ("V", "M"),
        "embeddings.LayerNorm.weight": ("H",),
        "embeddings.LayerNorm.bias": ("H",),
        "embeddings.position_embeddings.weight": ("P", "M"),
        "embeddings.token_type_embeddings.weight": ("T", "M"),
        "embeddings.embed_proj.weight": ("H", "M"),
        "encoder.rel_embeddings.weight": ("R", "H"),
        **_RELATIVE_NORM,
        **_CONV,
    },
    per_layer={
        **{re.sub(r"(query|key|value)\.", r"\1_proj.", name): shape for name, shape in BERT.per_layer.items()},
        **_projection("key"),
        **_projection("query"),
    },
    dims=_all_dims,
    gives=2,
    heads={
        "Model": Head(),
        "ForMaskedLM": replace(
            _MASKED,
            prefix="deberta.",
            tied={n: own.replace("bert.", "deberta.") for n, own in _MASKED.tied.items()},
            lacks=frozenset(),
        ),
        "ForSequenceClassification": Head(prefix="deberta.", tensors={**_POOLER, **_CLASSIFIER}),
        "ForMultipleChoice": Head(prefix="deberta.", tensors={**_POOLER, **CHOICE}),
        "ForTokenClassification": Head(
            prefix="deberta.", tensors={"classifier.weight": ("C", "H"), "classifier.bias": ("C",)}
        ),
        "ForQuestionAnswering": Head(prefix="deberta.", tensors=SPANS),
    },
    buffers=("embeddings.position_ids",),
    optional=frozenset(),
    only_if=_ONLY_IF,
)
