"""Where each tensor of a mixture of experts belongs, told from its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError
from moeify.families.moe_layout import ExpertTensor, MoeLayout
from moeify.families.quantization import split_quantized
from moeify.families.values import Config, text_config

MIXERS = frozenset(("self_attn", "attn", "attention", "crossattention", "linear_attn", "mamba", "conv", "mixer"))
"""Under which names a layer's parts mix tokens with one another."""
_EMBEDDINGS = ("embed_tokens", "embeddings", "wte", "wpe")
_OUTSIDE = -1


@dataclass(slots=True, kw_only=True)
class Place:
    """The ``part`` of the model that a tensor belongs to, and its layer, -1 outside of all.

    ``name`` is the plain one of a tensor or, if quantised, of the weight that it stands for,
    relative to the layer or the base model. ``kind`` is that of what depends on the number of
    experts: a ``single`` tensor belongs to ``expert`` alone, the others count all of them along
    ``axis``. ``packed`` tensors hold several weights per element; what stands ``beside`` a
    quantised weight holds none.
    """

    part: str
    name: str
    layer: int = _OUTSIDE
    kind: Literal["router", "single", "fused"] | None = None
    spec: ExpertTensor | None = None
    expert: int = 0
    axis: int = 0
    packed: bool = False
    beside: bool = False

    @property
    def plain(self) -> ExpertTensor | None:
        """What a tensor of experts is, where it holds their weights one by one."""
        return None if self.packed or self.beside else self.spec


def layout_prefix(layout: MoeLayout, names: Iterable[str]) -> str:
    """What leads the base model's tensor names in this checkpoint."""
    root = layout.layer.split("{")[0]
    for prefix in (*layout.prefixes, ""):
        if any(name.startswith(prefix + root) for name in names):
            return prefix
    return layout.prefixes[0]


class Places:
    """Looks names up instead of matching patterns: a large mixture has 20,000 of them."""

    def __init__(
        self, layout: MoeLayout, config: Config, prefix: str, num_layers: int, moe_layers: tuple[int, ...]
    ) -> None:
        self.layout, self.prefix = layout, prefix
        self.num_layers, self.moe_layers = num_layers, frozenset(moe_layers)
        self.layer_root = prefix + layout.layer.split("{")[0]
        self.outer = {prefix + name: name for name in layout.rest.outer}
        self.inner = dict(_inner_parts(layout))
        self.fused = {spec.name: spec for spec in layout.experts if spec.fused}
        self.single: dict[str, dict[str, ExpertTensor]] = {}
        for spec in layout.experts:
            if not spec.fused:
                head, tail = spec.name.split("{expert}.")
                self.single.setdefault(head, {})[tail] = spec
        ahead = text_config(config).get("num_nextn_predict_layers")
        ignored = layout.rest.ignored
        self.apart = tuple(f"{lead}layers." for lead in ignored if lead.endswith(".") and not lead[-2].isdecimal())
        self.last = num_layers + (ahead if type(ahead) is int and not self.apart else 0)
        self.named_apart = tuple(lead for lead in ignored if lead.startswith(self.layer_root))

    def prefix_of(self, layer: int) -> str:
        """What leads the names of one layer's tensors; layers in a place of their own count from ``last`` on."""
        if layer >= self.last and self.apart:
            return f"{self.apart[0]}{layer - self.last}."
        return self.prefix + self.layout.layer.format(layer=layer)

    def is_further(self, layer: int, name: str) -> bool:
        """Whether a tensor of ``layer`` belongs to one beyond the model's own, for predicting further tokens."""
        return layer >= self.num_layers and (layer < self.last or name.startswith((*self.apart, *self.named_apart)))

    def find(self, stored: StoredTensor) -> Place:
        """Where a tensor belongs, a quantised one where the weight does that it stands for."""
        if self.layout.is_guard(stored):
            return Place(part="guard", name=stored.name)
        return self.named(stored.name)

    def named(self, name: str) -> Place:
        """Where a tensor or module of this name belongs."""
        place = self._known(name)
        if place is not None:
            return place
        quantized = split_quantized(name)
        if quantized is None:
            return self._other(name)
        place = self._known(quantized[0]) or self._other(name)
        place.packed, place.beside = quantized[1], not quantized[1]
        return place

    def renumbered(self, name: str, expert: int) -> str:
        """Name of a tensor or module of a single expert under another number."""
        _, inner = self._split(name) or (None, "")
        head = next(head for head in self.single if inner.startswith(head))
        start = len(name) - len(inner) + len(head)
        _, dot, tail = name[start:].partition(".")
        return f"{name[:start]}{expert}{dot}{tail}"

    def _known(self, name: str) -> Place | None:
        if (found := self._split(name)) is not None:
            return self._within(*found, name)
        if (outer := self.outer.get(name)) is not None:
            return Place(part=outer_part(outer), name=outer)
        if named_like(name, self.layout.rest.heads):
            return Place(part="heads", name=name)
        return None

    def _split(self, name: str) -> tuple[int, str] | None:
        """Layer of a tensor, and its name in there."""
        for root, first in ((self.layer_root, 0), *((root, self.last) for root in self.apart)):
            if name.startswith(root):
                number, _, inner = name.removeprefix(root).partition(".")
                return (first + int(number), inner) if number.isdecimal() else None
        return None

    def _within(self, layer: int, name: str, full: str) -> Place | None:
        further = self.is_further(layer, full)
        if layer >= self.num_layers and not further:
            return None
        place = self._inside(layer, name, further or layer in self.moe_layers)
        if further and place is not None:
            place.part = "ignored"
        return place

    def _inside(self, layer: int, name: str, mixture: bool) -> Place | None:
        part = self.inner.get((name, mixture))
        if part == "routers":
            return self._router(layer, name, part)
        if part is not None:
            return Place(part=part, name=name, layer=layer)
        if not mixture:
            return None
        if (spec := self.fused.get(name)) is not None:
            return Place(part="experts", name=name, layer=layer, kind="fused", spec=spec)
        expert, tail, tails = self._one_expert(name)
        if expert is None or (spec := tails.get(tail)) is None:
            return None
        return Place(part="experts", name=name, layer=layer, kind="single", spec=spec, expert=expert)

    def _router(self, layer: int, name: str, part: str) -> Place:
        rule = self.layout.rule
        axis = rule.selection_bias_axis if name == rule.selection_bias else 0
        return Place(part=part, name=name, layer=layer, kind="router", axis=axis)

    def _one_expert(self, name: str) -> tuple[int | None, str, dict[str, ExpertTensor]]:
        """Number of the expert whose own tensor this is, and its name and all names in there."""
        for head, tails in self.single.items():
            if name.startswith(head):
                number, _, tail = name.removeprefix(head).partition(".")
                if number.isdecimal():
                    return int(number), tail, tails
        return None, "", {}

    def _other(self, name: str) -> Place:
        """A tensor that no class loads may belong to a router or to experts all the same."""
        layer, inner = self._split(name) or (_OUTSIDE, name)
        further = self.is_further(layer, name)
        place = Place(part="ignored" if further else self._rest(name), name=inner, layer=layer)
        if further or layer in self.moe_layers:
            expert = self._one_expert(inner)[0]
            if inner.startswith(self.layout.router.removesuffix("weight")):
                place.kind = "router"
            elif expert is not None:
                place.kind, place.expert = "single", expert
            elif inner.startswith(tuple(fused.removesuffix(".weight") for fused in self.fused)):
                place.kind = "fused"
        return place

    def _rest(self, name: str) -> str:
        rest = self.layout.rest
        if rest.towers and name.startswith(rest.towers):
            return "towers"
        if rest.ignored and name.startswith(rest.ignored):
            return "ignored"
        return "buffers" if name.endswith(rest.buffers) else "unknown"


def _inner_parts(layout: MoeLayout) -> Iterator[tuple[tuple[str, bool], str]]:
    """Part of every tensor of a layer by its name and whether the layer is a mixture."""
    rest = layout.rest
    for name in rest.per_layer:
        yield from ((((name, mixture), layer_part(name))) for mixture in (False, True))
    for name in rest.ffn:
        yield (name, False), "dense_ffn"
    for name in rest.shared:
        yield (name, True), "shared_experts"
    for null in layout.null_experts:
        yield (null.name, True), "null_experts"
    for router in (layout.router, *layout.router_biases, *layout.scales):
        yield (router, True), "routers"


def layer_part(name: str) -> str:
    """Part of a tensor of a layer that is no FFN's and no router's."""
    return "attention" if name.split(".")[0] in MIXERS else "norms"


def outer_part(name: str) -> str:
    """Part of a tensor of the base model outside of the layers."""
    root = name.split(".")[0]
    if root in _EMBEDDINGS:
        return "embeddings"
    return "heads" if root == "pooler" else "norms"


def named_like(name: str, endings: tuple[str, ...]) -> bool:
    """Whether ``name`` ends with one of ``endings``, whole parts of it compared."""
    return any(name == ending or name.endswith("." + ending) for ending in endings)


def counts_experts(stored: StoredTensor, num_experts: int, axis: int) -> bool:
    """Whether ``stored`` counts experts along ``axis``, and is not one number for all of them."""
    if len(stored.shape) > axis and stored.shape[axis] == num_experts:
        return True
    if stored.elements == 1:
        return False
    raise CheckpointError(
        f"tensor {stored.name!r} of shape {list(stored.shape)} does not count {num_experts} experts"
        f" along axis {axis}: it cannot be cut",
        "prune the unquantised checkpoint, or use the config.json that belongs to these weights",
        path=stored.path,
    )


def unflattened(checkpoint: Checkpoint, layout: MoeLayout) -> Checkpoint:
    """The checkpoint with an axis of its own for the experts of flat tensors."""
    flat, config = tuple(f".{spec.name}" for spec in layout.experts if spec.flat), checkpoint.config
    if not flat or not layout.moe_layers(config):
        return checkpoint
    count, tensors = layout.num_experts(config), dict(checkpoint.tensors)
    for name, stored in checkpoint.tensors.items():
        if name.endswith(flat) and stored.shape and stored.shape[0] % count == 0:
            rows = stored.shape[0] // count
            tensors[name] = replace(stored, shape=(count, rows, *stored.shape[1:]))
    return replace(checkpoint, tensors=tensors)
