"""Which tensor is what in a mixture of experts, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from moeify.checkpoint.header import StoredTensor
from moeify.families.base import Config, ExpertTensor, MoeLayout
from moeify.families.quantization import packed_values, split_quantized
from moeify.families.values import text_config

__all__ = ["Anatomy", "ExpertSlice", "PartSize", "dissect", "layout_prefix"]

_MIXERS = ("self_attn", "attn", "attention", "crossattention", "linear_attn", "mamba", "conv")
_EMBEDDINGS = ("embed_tokens", "embeddings", "wte", "wpe")
_UNCOUNTED = ("buffers", "guard", "ignored", "unknown")


@dataclass(kw_only=True)
class PartSize:
    """Parameters and stored bytes of one part of a model."""

    parameters: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSlice:
    """Where one role of one expert, or of all experts of a layer, is stored.

    ``expert`` is None where one tensor holds them all; ``packed`` says that the tensor holds
    several weights per element.
    """

    stored: StoredTensor
    expert: int | None
    packed: bool


@dataclass(kw_only=True)
class Anatomy:
    """The tensors of a mixture, sorted.

    ``experts`` maps layer and the name of an ``ExpertTensor`` to its slices; ``routers`` layers to
    router weights; ``layers`` layers to the names of all their other tensors. ``shared`` are
    endings of heads that stand a second time under the name that they share their values with.
    """

    layout: MoeLayout
    config: Config
    prefix: str
    num_layers: int
    moe_layers: tuple[int, ...]
    parts: dict[str, PartSize] = field(default_factory=dict)
    experts: dict[int, dict[str, list[ExpertSlice]]] = field(default_factory=dict)
    routers: dict[int, StoredTensor] = field(default_factory=dict)
    layers: dict[int, set[str]] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    outer: set[str] = field(default_factory=set)
    heads: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    expert_parameters: dict[int, int] = field(default_factory=dict)

    def found_experts(self, layer: int) -> int:
        """Number of experts that the files hold for ``layer``, whatever config.json says."""
        numbers: set[int] = set()
        for slices in self.experts.get(layer, {}).values():
            for piece in slices:
                if piece.expert is None:
                    return piece.stored.shape[0] if piece.stored.shape else 0
                numbers.add(piece.expert)
        return len(numbers)

    @property
    def parameters(self) -> int:
        """What the class holds, tied tensors once, those of other classes not."""
        return sum(part.parameters for part in self.parts.values())

    def active_parameters(self, top_k: int) -> int:
        """What one token uses: of each layer's experts only ``top_k``."""
        active = self.parameters
        for layer, total in self.expert_parameters.items():
            found = self.found_experts(layer)
            active -= total - total * min(top_k, found) // max(found, 1)
        return active


def layout_prefix(layout: MoeLayout, names: Iterable[str]) -> str:
    """What leads the base model's tensor names in this checkpoint."""
    root = layout.layer.split("{")[0]
    for prefix in (*layout.prefixes, ""):
        if any(name.startswith(prefix + root) for name in names):
            return prefix
    return layout.prefixes[0]


def dissect(tensors: dict[str, StoredTensor], config: Config, layout: MoeLayout) -> Anatomy:
    """Sort ``tensors`` by what they are; raises ``CheckpointError`` for an unusable config."""
    num_layers = layout.dims(config)["L"]
    anatomy = Anatomy(
        layout=layout,
        config=config,
        prefix=layout_prefix(layout, tensors),
        num_layers=num_layers,
        moe_layers=layout.moe_layers(config),
    )
    anatomy.shared = _shared(anatomy, tensors)
    sorter = _Sorter(anatomy)
    for stored in tensors.values():
        sorter.place(stored)
    return anatomy


def _shared(anatomy: Anatomy, tensors: Container[str]) -> frozenset[str]:
    rest = anatomy.layout.rest
    if not rest.ties(anatomy.config):
        return frozenset()
    both = {end: {own, anatomy.prefix + own} for end, own in rest.tied.items()}
    return frozenset(end for end, names in both.items() if any(n in tensors for n in names))


class _Sorter:
    """Looks names up instead of matching patterns: a large mixture has 20,000 of them."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        layout, rest = anatomy.layout, anatomy.layout.rest
        self.layer_root = anatomy.prefix + layout.layer.split("{")[0]
        self.outer = {anatomy.prefix + name for name in rest.outer}
        self.inner = dict(_inner_parts(layout))
        self.fused = {spec.name: spec for spec in layout.experts if spec.fused}
        self.single: dict[str, dict[str, ExpertTensor]] = {}
        for spec in layout.experts:
            if not spec.fused:
                head, tail = spec.name.split("{expert}.")
                self.single.setdefault(head, {})[tail] = spec
        self.uncounted = (*anatomy.shared, *rest.lacking(anatomy.config))
        ahead = text_config(anatomy.config).get("num_nextn_predict_layers")
        self.ahead = ahead if type(ahead) is int else 0
        self.layer = 0  # of the tensor found last
        self.bias = anatomy.layout.rule.selection_bias

    def place(self, stored: StoredTensor) -> None:
        """Put one tensor where it belongs, a quantised one beside the weight it stands for."""
        if self.anatomy.layout.is_guard(stored):
            self._count("guard", stored, 0)
            return
        part = self._find(stored, stored.name, packed=False)
        values = 1
        if part is None and (quantized := split_quantized(stored.name)) is not None:
            canonical, packed = quantized
            part = self._find(stored, canonical, packed=packed, side=not packed)
            values = packed_values(stored.name, stored.dtype, self.anatomy.config) if packed else 0
            if part is not None and not packed:
                part = "quantization"
        if part is None:
            part = self._other(stored.name)
        self._count(part, stored, values)

    def _count(self, part: str, stored: StoredTensor, values: int) -> None:
        size = self.anatomy.parts.setdefault(part, PartSize())
        size.nbytes += stored.nbytes
        if part in _UNCOUNTED or not values:
            return
        if part in ("routers", "heads") and not self._is_parameter(stored.name):
            return
        parameters = stored.elements * values
        size.parameters += parameters
        if part == "experts":
            total = self.anatomy.expert_parameters
            total[self.layer] = total.get(self.layer, 0) + parameters

    def _is_parameter(self, name: str) -> bool:
        if self.bias and name.endswith(self.bias):
            return self.anatomy.layout.rule.selection_bias_trained
        return not _ends(name, self.uncounted)

    def _find(
        self, stored: StoredTensor, name: str, *, packed: bool, side: bool = False
    ) -> str | None:
        if name.startswith(self.layer_root):
            number, _, inner = name.removeprefix(self.layer_root).partition(".")
            if not number.isdecimal():
                return None
            self.layer = layer = int(number)
            if layer >= self.anatomy.num_layers:
                return "ignored" if layer < self.anatomy.num_layers + self.ahead else None
            return self._find_inner(stored, layer, inner, packed=packed, side=side)
        if name in self.outer:
            self.anatomy.outer.add(name.removeprefix(self.anatomy.prefix))
            return _outer_part(name.removeprefix(self.anatomy.prefix))
        if _ends(name, self.anatomy.layout.rest.heads):
            self.anatomy.heads.add(name)
            return "heads"
        return None

    def _find_inner(
        self, stored: StoredTensor, layer: int, inner: str, *, packed: bool, side: bool
    ) -> str | None:
        mixture = layer in self.anatomy.moe_layers
        part = self.inner.get((inner, mixture))
        if part is not None:
            self.anatomy.layers.setdefault(layer, set()).add(inner)
            if inner == self.anatomy.layout.router and not side:
                self.anatomy.routers[layer] = stored
            return part
        found = self._expert(inner) if mixture else None
        if found is None:
            return None
        spec, expert = found
        if not side:
            slices = self.anatomy.experts.setdefault(layer, {}).setdefault(spec.name, [])
            slices.append(ExpertSlice(stored=stored, expert=expert, packed=packed))
        return "experts"

    def _expert(self, inner: str) -> tuple[ExpertTensor, int | None] | None:
        if inner in self.fused:
            return self.fused[inner], None
        for head, tails in self.single.items():
            if inner.startswith(head):
                number, _, tail = inner.removeprefix(head).partition(".")
                if number.isdecimal() and tail in tails:
                    return tails[tail], int(number)
        return None

    def _other(self, name: str) -> str:
        rest = self.anatomy.layout.rest
        if rest.towers and name.startswith(rest.towers):
            return "towers"
        if rest.ignored and name.startswith(rest.ignored):
            return "ignored"
        if name.endswith(rest.buffers):
            return "buffers"
        self.anatomy.unknown.append(name)
        return "unknown"


def _inner_parts(layout: MoeLayout) -> Iterator[tuple[tuple[str, bool], str]]:
    """Part of every tensor of a layer by its name and whether the layer is a mixture."""
    rest, rule = layout.rest, layout.rule
    for name in rest.per_layer:
        part = "attention" if name.split(".")[0] in _MIXERS else "norms"
        yield from ((((name, mixture), part)) for mixture in (False, True))
    for name in rest.ffn:
        yield (name, False), "dense_ffn"
    for name in rest.shared:
        yield (name, True), "shared_experts"
    for router in (layout.router, layout.router_bias, rule.selection_bias):
        if router is not None:
            yield (router, True), "routers"


def _outer_part(name: str) -> str:
    root = name.split(".")[0]
    if root in _EMBEDDINGS:
        return "embeddings"
    return "heads" if root == "pooler" else "norms"


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith("." + ending) for ending in endings)
