"""Rotary positions in the notations of config.json: transformers 5's, and the one before it."""

from __future__ import annotations

from typing import Any

from moeify.families.values import Config

_THETA = 10000.0  # what every class of these families assumes
_TOP_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor")
_KNOW_THEIR_ORIGIN = ("llama3", "yarn", "longrope")
_ORIGIN = "original_max_position_embeddings"


def canonical_rope(config: Config) -> Config:
    """``config`` with all that it says of rotary positions in ``rope_parameters``, defaults too.

    Precedence is transformers 5's: ``rope_scaling`` before ``rope_parameters``, what they hold
    before what stands beside them. Parameters by kind of layer are left as they are.
    """
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        return dict(config)
    rope: dict[str, Any] = {key: value for key, value in found.items() if key != "type"}
    rope.setdefault("rope_type", found.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta") or _THETA)
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if rope["rope_type"] in _KNOW_THEIR_ORIGIN:
        origin = config.get(_ORIGIN) or rope.get(_ORIGIN) or config.get("max_position_embeddings")
        rope |= {} if origin is None else {_ORIGIN: origin}
    others = {key: value for key, value in config.items() if key not in _TOP_KEYS}
    return {**others, "rope_parameters": rope}


def rope(config: Config) -> dict[str, Any]:
    """What ``config`` says of rotary positions, the same for every layer."""
    found = canonical_rope(config).get("rope_parameters")
    return found if isinstance(found, dict) else {}


def spelled_rope(config: Config) -> Config:
    """``config`` with its rotary positions in both notations.

    Engines other than transformers 5 look for ``rope_theta`` and ``rope_scaling`` at the top, and
    assume another value, or none, where they are missing.
    """
    config = canonical_rope(config)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_type" not in rope:
        return config
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    top: Config = {"rope_theta": rope["rope_theta"]}
    if (part := scaling.pop("partial_rotary_factor", None)) is not None:
        top["partial_rotary_factor"] = part
    if rope["rope_type"] == "yarn" and rope.get(_ORIGIN) == config.get("max_position_embeddings"):
        scaling.pop(_ORIGIN, None)  # transformers 4 would take the factor from it, which is 1
    if rope["rope_type"] != "default" or scaling.keys() > {"rope_type"}:  # such as mrope_section
        top["rope_scaling"] = {**scaling, "type": rope["rope_type"]}
    if rope["rope_type"] == "longrope" and _ORIGIN in rope:
        top[_ORIGIN] = rope[_ORIGIN]
    return config | top
