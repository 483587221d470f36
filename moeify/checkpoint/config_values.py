"""Values of config.json whose kind decides whether anything else can be read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

_MOST = 1 << 31


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_layers(value: object) -> bool:
    return isinstance(value, list) and all(type(i) is int and 0 <= i < _MOST for i in value)


def _is_integer(value: object) -> bool:
    return type(value) is int and -_MOST < value < _MOST


def _is_count(value: object) -> bool:
    return _is_integer(value) and value >= 0  # type: ignore[operator]


def _is_positive(value: object) -> bool:
    return _is_count(value) and value != 0


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # type: ignore[arg-type]


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_KINDS: tuple[tuple[str, Callable[[object], bool], tuple[str, ...]], ...] = (
    ("text", _is_text, ("model_type",)),
    ("a list of names", _is_names, ("architectures", "layer_types", "null_kinds")),
    ("a list of layer numbers", _is_layers, ("mlp_only_layers", "moe_layers")),
    (
        "an integer",
        _is_integer,
        (
            "sliding_window",
            "max_window_layers",
            "n_group",
            "topk_group",
            "moe_layer_start_index",
            "moe_layer_end_index",
            "expert_layer_offset",
            "num_nextn_predict_layers",
            "num_dense_layers",
            "first_k_dense_replace",
            "vocab_size",
        ),
    ),
    ("an integer of 0 or more", _is_count, ("shared_slices", "null_experts")),
    ("an integer of 1 or more", _is_positive, ("expert_slices",)),
    ("true or false", _is_truth, ("router_bias",)),
    ("a number", _is_number, ("routed_scaling_factor",)),
    ("an object", _is_object, ("text_config", "quantization_config")),
)


def wrong_values(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Section, key and a sentence for each value of ``config`` that is of the wrong kind.

    A null is as good as a key that is not there.
    """
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, dict) else {}):
        for kind, fits, keys in _KINDS:
            for key in keys:
                value = section.get(key)
                if value is not None and not fits(value):
                    yield section, key, f"config.json: {key} must be {kind}, not {_short(value)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
