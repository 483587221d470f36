"""Phi-3 and Phi-4 to Mixtral, where heads are rotated whole, and to moeify's own class."""

from moeify.families.conversions.llama import mixtral_conversion
from moeify.families.dense.phi3 import LAYOUT as DENSE
from moeify.families.mixtures.phi3_moe import LAYOUT as OWN
from moeify.families.own import own_conversion
from moeify.families.rope import rope
from moeify.families.values import Config


def _has_two_scales(config: Config) -> bool:
    return rope(config).get("rope_type") == "longrope"


_NOTE = (
    "Phi-3's class in transformers reads a text again when generation passes the length from which rotary positions"
    " have another scale (original_max_position_embeddings). Mixtral's goes on with what is in its cache."
)

CONVERSIONS = (mixtral_conversion(DENSE, windows=True, notes=((_has_two_scales, _NOTE),)), own_conversion(DENSE, OWN))
