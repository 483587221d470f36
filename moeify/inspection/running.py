"""What running a model takes: bytes of its weights in the usual dtypes, and of its cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moeify.checkpoint.header import StoredTensor
from moeify.families.registry import is_encoder_type, known_dense
from moeify.families.values import Config, text_config

_QUANTISED_PARTS = ("experts", "shared_experts", "dense_ffn", "attention")
_BF16 = 2.0
_INT8 = 1.0
_NF4 = 0.5 + 4 / 64
"""Bytes of a weight: four bits, and a float32 scale for each 64 weights."""
_TOKENS = 1000
_KEYS = {
    "heads": ("num_attention_heads", "n_head"),
    "hidden": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
}
_KEPT = re.compile(r"\.(k_proj|v_proj|kv_a_proj_with_mqa)\.weight$")
"""Projections whose outputs are what attention keeps: keys and values, or the latents of both."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """Bytes of all weights in bfloat16, and as bitsandbytes quantises them, which leaves embeddings, heads, norms
    and routers in bfloat16; and bytes of keys and values, in bfloat16, of a thousand tokens.

    ``kv_cache`` is None for encoders, and where config.json does not say enough.
    """

    bfloat16: int
    int8: int
    nf4: int
    kv_cache: int | None

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        values = asdict(self)
        return values | {"kv_cache_per_1000_tokens": values.pop("kv_cache")}


def running_costs(
    config: Config,
    parts: Mapping[str, Mapping[str, int]],
    tensors: Iterable[tuple[str, StoredTensor]],
    layer: str,
    num_layers: int,
) -> Running | None:
    """The costs of a model whose ``parts`` have so many parameters; None where nothing is counted.

    ``layer`` is how names of ``tensors``, relative to the base model, begin in a layer, with {layer} for
    its number; layers from ``num_layers`` on predict further tokens and do not run.
    """
    every = sum(part["parameters"] for part in parts.values())
    if not every:
        return None
    quantised = sum(parts[name]["parameters"] for name in _QUANTISED_PARTS if name in parts)
    rest = (every - quantised) * _BF16
    values = None
    if not is_encoder_type(config):
        values = _values_of_layers(tensors, layer, num_layers) or _values_by_config(config)
    return Running(
        bfloat16=round(every * _BF16),
        int8=round(quantised * _INT8 + rest),
        nf4=round(quantised * _NF4 + rest),
        kv_cache=None if values is None else round(values * _BF16 * _TOKENS),
    )


def _values_of_layers(tensors: Iterable[tuple[str, StoredTensor]], layer: str, num_layers: int) -> int:
    """Numbers that all layers keep of a token, by the sizes of their projections; 0 where those have other names."""
    first, last = (re.escape(part) for part in layer.split("{layer}"))
    inside = re.compile(rf"(?<![\w.]){first}(\d+){last}")
    widths: dict[str, dict[str, int]] = {}
    for name, stored in tensors:
        kept = _KEPT.search(name)
        place = inside.search(name) if kept else None
        if place and kept and len(stored.shape) == 2 and int(place[1]) < num_layers:
            widths.setdefault(place[1], {})[kept[1]] = stored.shape[0]
    # Keys that are values too have no projection of their own, and are kept twice.
    doubled = ({"v_proj": found["k_proj"]} | found if "k_proj" in found else found for found in widths.values())
    return sum(sum(found.values()) for found in doubled)


def _values_by_config(config: Config) -> int | None:
    """The same where keys, values and queries are one projection, and all layers are alike."""
    dense = known_dense(config)
    section = text_config(config if dense is None else dense.canonical(config))
    heads, hidden, layers = (_number(section, keys) for keys in _KEYS.values())
    if heads is None or layers is None or hidden is None:
        return None
    size = _number(section, ("head_dim",)) or hidden // heads
    return layers * 2 * size * (_number(section, ("num_key_value_heads",)) or heads)


def _number(section: Config, keys: tuple[str, ...]) -> int | None:
    found = (section.get(key) for key in keys)
    return next((value for value in found if type(value) is int and value > 0), None)
