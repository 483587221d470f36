"""Which families there are, found by ``model_type``."""

from __future__ import annotations

from moeify.errors import UnsupportedModelError
from moeify.families.base import Config, Family, MoeLayout
from moeify.families.bert import BERT
from moeify.families.gpt2 import GPT2
from moeify.families.published import MIXTRAL, OLMOE
from moeify.families.qwen2 import QWEN2
from moeify.families.qwen3 import QWEN3

__all__ = ["FAMILIES", "MOE_LAYOUTS", "dense_family", "moe_family", "moe_layout"]

FAMILIES = {family.model_type: family for family in (BERT, GPT2, QWEN2, QWEN3)}
_BY_MOE_TYPE = {family.moe.model_type: family for family in FAMILIES.values()}
MOE_LAYOUTS = {
    layout.model_type: layout
    for layout in (*(family.moe for family in FAMILIES.values()), MIXTRAL, OLMOE)
}


def dense_family(config: Config) -> Family:
    """The family of a dense checkpoint; raises ``UnsupportedModelError``, also for an MoE."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    if isinstance(model_type, str) and (model_type in _BY_MOE_TYPE or "moe" in model_type):
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


def moe_layout(config: Config) -> MoeLayout:
    """How the MoE checkpoint with ``config`` is laid out; raises ``UnsupportedModelError``."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in MOE_LAYOUTS:
        return MOE_LAYOUTS[model_type]
    hint = None
    if model_type in FAMILIES:
        hint = "it is a dense checkpoint: run moeify upcycle first"
    raise UnsupportedModelError(model_type, MOE_LAYOUTS, hint)
