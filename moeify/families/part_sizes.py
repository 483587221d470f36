"""How large the parts of a mixture are, in parameters and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.checkpoint.header import StoredTensor
from moeify.families.mixture_places import Place, named_like
from moeify.families.quantization import packed_values

if TYPE_CHECKING:
    from moeify.families.mixture import Mixture

_UNCOUNTED = ("buffers", "guard", "ignored", "unknown")
UNPLACED = (*_UNCOUNTED, "towers")
"""Parts whose tensors are none of the layers' or the base model's."""


@dataclass(kw_only=True)
class PartSize:
    """Parameters and stored bytes of one part of a model."""

    parameters: int = 0
    nbytes: int = 0


def count(mixture: Mixture, stored: StoredTensor, place: Place, not_counted: tuple[str, ...]) -> None:
    """Add one tensor to the sizes of its part; ``not_counted`` are endings of those that are no parameters."""
    beside = place.beside and place.part not in UNPLACED
    size = mixture.parts.setdefault("quantization" if beside else place.part, PartSize())
    size.nbytes += stored.nbytes
    if place.beside or place.part in _UNCOUNTED:
        return
    if place.part in ("routers", "heads") and named_like(stored.name, not_counted):
        return
    values = packed_values(stored.name, stored.dtype, mixture.config) if place.packed else 1
    size.parameters += stored.elements * values
    if place.spec is not None:
        total = mixture.expert_parameters
        total[place.layer] = total.get(place.layer, 0) + stored.elements * values


def uncounted(mixture: Mixture) -> Iterator[str]:
    """Endings of routers' and heads' tensors that are no parameters, or are tied to others."""
    rest, rule = mixture.layout.rest, mixture.layout.rule
    yield from rest.lacking(mixture.config)
    if rule.selection_bias is not None and not rule.selection_bias_trained:
        yield rule.selection_bias
    if rest.ties(mixture.config):
        held = mixture.checkpoint.tensors.keys()
        yield from (end for end, own in rest.tied.items() if not held.isdisjoint((own, mixture.prefix + own)))
