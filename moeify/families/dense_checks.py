"""What a dense checkpoint holds, and what upcycling would make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from moeify.checkpoint.header import StoredTensor
from moeify.errors import MoeifyError
from moeify.families.conversion import MoeSettings
from moeify.families.dense_checkpoint import Dense
from moeify.families.mixture_places import layer_part, outer_part
from moeify.families.moe_checks import unknown_tensors
from moeify.families.part_sizes import PartSize
from moeify.families.problems import Problem, by_pattern
from moeify.families.quantization import packed_values, split_quantized
from moeify.families.registry import conversion_from
from moeify.families.values import resolve_shape

_EXPERTS, _TOP_K = 8, 2  # the defaults of upcycle
_PACKED = "U8"  # bitsandbytes has two weights of 4 bit in one such element


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What ``moeify upcycle`` would make of a dense checkpoint with its default options.

    ``ffn`` describes the FFN tensors by role: name in a layer and shape.
    """

    model_type: str
    num_experts: int
    top_k: int
    params_total: int
    params_active: int
    nbytes: int
    ffn: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        return asdict(self)


def dense_problems(found: Dense) -> list[Problem]:
    """Missing tensors, wrong shapes and tensors that the class does not load."""
    return [] if found.quantised else list(_problems(found))


def dense_parts(found: Dense) -> dict[str, PartSize]:
    """Sizes by part; what no file holds has parameters and no bytes."""
    parts: dict[str, PartSize] = {}

    def count(part: str, nbytes: int, parameters: int) -> None:
        size = parts.setdefault(part, PartSize())
        size.nbytes += nbytes
        size.parameters += parameters

    for name, stored in found.held.items():
        nbytes = 0 if name in found.filled else stored.nbytes
        count(_part(name, found), nbytes, _weights(name, stored, found) if found.is_parameter(name) else 0)
    for stored in found.buffers:
        count("buffers", stored.nbytes, 0)
    for name, stored in found.unknown.items():
        plain, packed = (found.quantised and split_quantized(name)) or ("", False)
        if packed:
            count(_part(found.relative(plain) or plain, found), stored.nbytes, _weights(name, stored, found))
        else:
            left = "ignored" if name.startswith(found.layout.ignored) else "unknown"
            count("quantization" if plain else left, stored.nbytes, 0)
    return parts


def _weights(name: str, stored: StoredTensor, found: Dense) -> int:
    """How many a tensor holds: several an element where packed, none beside quantised ones."""
    quantised = split_quantized(name) if found.quantised else None
    if quantised is not None and not quantised[1]:
        return 0
    packed = quantised is not None or stored.dtype == _PACKED
    return stored.elements * (packed_values(name, stored.dtype, found.config) if packed else 1)


def _part(name: str, found: Dense) -> str:
    if name not in found.expected:
        return "towers" if name.startswith(found.layout.towers) else "heads"
    layer_root = found.layout.layer.split("{")[0]
    if name.startswith(layer_root):
        inner = name.removeprefix(layer_root).partition(".")[2]
        if inner in {part.name for part in found.layout.ffn}:
            return "dense_ffn"
        return layer_part(inner)
    return outer_part(name)


def _problems(found: Dense) -> Iterator[Problem]:
    for name, first, second in found.twice:
        yield Problem(kind="duplicate_tensor", message=f"{first.name} and {second.name} are both {name}")
    yield from by_pattern("missing_tensor", [*found.missing, *sorted(found.filled)], "missing")
    yield from by_pattern("shape", found.misshapen, "of another shape than config.json says")
    ignored = found.layout.ignored
    unknown = [stored.name for name, stored in found.unknown.items() if not name.startswith(ignored)]
    yield from unknown_tensors(unknown, found.layout.model_type)


def outlook(found: Dense, parts: dict[str, PartSize]) -> Outlook | None:
    """What upcycling would make of it; None where it would be refused for a tensor."""
    if found.quantised or found.missing or found.twice or found.misshapen:
        return None
    layout = found.layout
    conversion = conversion_from(layout, found.config)
    dims = layout.dims(found.config)
    layers = dims["L"]
    settings = MoeSettings(num_experts=_EXPERTS, top_k=_TOP_K, moe_layers=tuple(range(layers)), num_layers=layers)
    ffn = found.ffn(0)
    elements = sum(stored.elements for stored in ffn.values())
    nbytes = sum(stored.nbytes for stored in ffn.values())
    moe_config, moe_dims = found.config, dims | {"E": _EXPERTS}
    with suppress(MoeifyError):  # upcycle refuses such a config, and says why
        moe_config = conversion.moe_config(found.config, settings)
        moe_dims = conversion.moe.sizes(moe_config)
    extras = conversion.parameters(moe_config)
    added = _EXPERTS * dims["H"] + sum(math.prod(resolve_shape(extra.shape, moe_dims)) for extra in extras)
    dense = sum(part.parameters for part in parts.values())
    stored_bytes = sum(part.nbytes for name, part in parts.items() if name != "buffers")
    return Outlook(
        model_type=conversion.moe.model_type,
        num_experts=_EXPERTS,
        top_k=_TOP_K,
        params_total=dense + layers * ((_EXPERTS - 1) * elements + added),
        params_active=dense + layers * ((_TOP_K - 1) * elements + added),
        nbytes=stored_bytes
        + layers * ((_EXPERTS - 1) * nbytes + added * nbytes // elements)
        + (nbytes // elements if conversion.moe.guard else 0),
        ffn={part.role: {"name": part.name, "shape": list(ffn[part.role].shape)} for part in layout.ffn},
    )
