"""Values that families read from config.json, checked as they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeify.errors import CheckpointError

Config = dict[str, Any]
"""config.json as a dictionary."""

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Under which a mixture's config.json says how many experts a layer has."""

Shape = tuple[str | int, ...]
"""Dimensions by symbol (H hidden, F FFN width, V vocabulary, ...) or by number."""

Dims = dict[str, int]
"""What the symbols of a ``Shape`` stand for in one config."""


def resolve_shape(shape: Shape, dims: Dims) -> tuple[int, ...]:
    """``shape`` in numbers; a digit before a symbol multiplies it, as in 2F."""
    return tuple(size if isinstance(size, int) else _size(size, dims) for size in shape)


def _size(symbol: str, dims: Dims) -> int:
    return int(symbol[:-1] or 1) * dims[symbol[-1]]


_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000
_LIMITS = {
    "num_hidden_layers": _MOST_LAYERS,
    "n_layer": _MOST_LAYERS,
    "n_layers": _MOST_LAYERS,
    "num_experts": _MOST_EXPERTS,
    "num_local_experts": _MOST_EXPERTS,
    "n_routed_experts": _MOST_EXPERTS,
    "moe_num_experts": _MOST_EXPERTS,
}


def positive(config: Config, key: str, default: int | None = None) -> int:
    """The positive integer under ``key``; raises ``CheckpointError`` for anything else.

    What is listed later, layers and experts, has a limit far beyond what is usual.
    """
    value = config.get(key)
    if value is None:
        value = default
    limit = _LIMITS.get(key, (1 << 31) - 1)
    if type(value) is not int or not 0 < value <= limit:
        raise CheckpointError(
            f"config.json: {key} must be a positive integer up to {limit}, not {value!r}",
            "mend config.json, or use the one that belongs to these weights",
        )
    return value


def first_positive(config: Config, keys: tuple[str, ...]) -> int:
    """The positive integer under the first of ``keys`` that is set."""
    for key in keys:
        if config.get(key) is not None:
            return positive(config, key)
    raise CheckpointError(f"config.json has no {' or '.join(keys)}")


def num_labels(config: Config) -> int:
    """Number of classes of a classification head, as transformers counts them."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else positive(config, "num_labels", 2)


def text_config(config: Config) -> Config:
    """The part of ``config`` that describes the language model, where there are others."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def with_text(config: Config, change: Callable[[Config], Config]) -> Config:
    """``config`` with its ``text_config`` changed; all of it where there is no such part."""
    nested = config.get("text_config")
    return {**config, "text_config": change(nested)} if isinstance(nested, dict) else change(config)


def ties_embeddings(config: Config, default: bool) -> bool:
    """Whether the tensors that a class may share with others are shared, biases included."""
    value = config.get("tie_word_embeddings")
    if value is None:
        value = text_config(config).get("tie_word_embeddings")
    return default if value is None else bool(value)
