"""Which families there are, found by ``model_type``."""

from __future__ import annotations

from collections.abc import Collection

from moeify.errors import UnsupportedModelError
from moeify.families import sigmoid_moe, softmax_moe
from moeify.families.base import Config, Family, MoeLayout
from moeify.families.bert import BERT
from moeify.families.gpt2 import GPT2
from moeify.families.moe_names import as_loaded
from moeify.families.qwen2 import QWEN2
from moeify.families.qwen3 import QWEN3
from moeify.families.qwen_moe import QWEN3_5_MOE, QWEN3_NEXT
from moeify.families.values import EXPERT_KEYS, positive, text_config

__all__ = [
    "FAMILIES",
    "MOE_LAYOUTS",
    "default_class",
    "dense_family",
    "mixture_family",
    "moe_family",
    "moe_layout",
    "vocabulary_size",
]

FAMILIES = {family.model_type: family for family in (BERT, GPT2, QWEN2, QWEN3)}
_BY_MOE_TYPE = {family.moe.model_type: family for family in FAMILIES.values()}

MOE_LAYOUTS: dict[str, MoeLayout] = {
    **{model_type: family.moe for model_type, family in _BY_MOE_TYPE.items()},
    "qwen3_next": QWEN3_NEXT,
    "qwen3_5_moe": QWEN3_5_MOE,
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "mixtral": softmax_moe.MIXTRAL,
    "phimoe": softmax_moe.PHIMOE,
    "olmoe": softmax_moe.OLMOE,
    "granitemoe": softmax_moe.GRANITEMOE,
    "gpt_oss": softmax_moe.GPT_OSS,
    "ernie4_5_moe": softmax_moe.ERNIE4_5_MOE,
    "jamba": softmax_moe.JAMBA,
    "llama4": softmax_moe.LLAMA4,
    "llama4_text": softmax_moe.LLAMA4,
    "deepseek_v3": sigmoid_moe.DEEPSEEK_V3,
    "glm4_moe": sigmoid_moe.GLM4_MOE,
    "minimax_m2": sigmoid_moe.MINIMAX_M2,
    "lfm2_moe": sigmoid_moe.LFM2_MOE,
}
"""MoE model types that can be read, as transformers writes them."""

_AS_LOADED = {model_type: as_loaded(layout) for model_type, layout in MOE_LAYOUTS.items()}
"""The same types under the names that transformers gives their tensors in memory."""


def dense_family(config: Config) -> Family:
    """The family of a dense checkpoint; raises ``UnsupportedModelError``, also for an MoE."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    counts = (text_config(config).get(key) for key in EXPERT_KEYS)
    several = any(type(count) is int and count > 1 for count in counts)
    if model_type in MOE_LAYOUTS or "moe" in str(model_type) or several:
        raise UnsupportedModelError(
            model_type,
            FAMILIES,
            "it is a mixture of experts already: see moeify inspect, or name a dense checkpoint",
        )
    if model_type is None:
        raise UnsupportedModelError(
            model_type, FAMILIES, "config.json does not say: add model_type if it is one of these"
        )
    raise UnsupportedModelError(model_type, FAMILIES, "docs/families.md says how to add a family")


def moe_family(config: Config) -> Family:
    """The family whose MoE half describes ``config``; raises ``UnsupportedModelError``."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _BY_MOE_TYPE:
        return _BY_MOE_TYPE[model_type]
    hint = None
    if model_type in FAMILIES:
        hint = "it is a dense checkpoint: run moeify upcycle first"
    raise UnsupportedModelError(model_type, _BY_MOE_TYPE, hint)


def mixture_family(config: Config) -> Family | None:
    """The family whose mixture ``config`` describes; None for any other checkpoint."""
    return _BY_MOE_TYPE.get(str(config.get("model_type")))


def default_class(model_type: str) -> str:
    """The class of a checkpoint whose config.json names none: upcycle takes the base model's.

    Empty for a type that belongs to no dense family.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type].architecture({})
    family = _BY_MOE_TYPE.get(model_type)
    return "" if family is None else family.moe_architecture({})


def vocabulary_size(config: Config) -> int:
    """Tokens that the model in ``config`` knows, its class's number where config.json is silent."""
    model_type = str(config.get("model_type"))
    if model_type in FAMILIES:
        return FAMILIES[model_type].dense.dims(config)["V"]
    if model_type in MOE_LAYOUTS:
        return MOE_LAYOUTS[model_type].dims(config)["V"]
    return positive(text_config(config), "vocab_size")


def moe_layout(config: Config, names: Collection[str] = ()) -> MoeLayout:
    """How the MoE checkpoint that ``config`` describes is laid out.

    ``names`` of tensors tell whether it was saved under transformers' names in memory; where they
    do not, it was not. Raises ``UnsupportedModelError``.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MOE_LAYOUTS:
        hint = None
        if model_type in FAMILIES:
            hint = "it is a dense checkpoint: run moeify upcycle first"
        raise UnsupportedModelError(model_type, MOE_LAYOUTS, hint)
    usual, loaded = MOE_LAYOUTS[model_type], _AS_LOADED[model_type]
    if loaded is usual or not names:
        return usual
    return max(usual, loaded, key=lambda layout: _fit(layout, config, names))


def _fit(layout: MoeLayout, config: Config, names: Collection[str]) -> int:
    """How many routers and tensors of first experts stand in ``names`` where ``layout`` says."""
    inner = (layout.router, *(spec.name.format(expert=0) for spec in layout.experts))
    return sum(
        prefix + layout.layer.format(layer=layer) + name in names
        for prefix in {*layout.prefixes, ""}
        for layer in layout.moe_layers(config)
        for name in inner
    )
