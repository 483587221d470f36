"""A mixture of experts: every tensor sorted once, by layer, role and expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.slices import Slice, whole
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.mixture_places import Place, Places, counts_experts, layout_prefix, unflattened
from moeify.families.moe_layout import ExpertTensor, MoeLayout
from moeify.families.numbering import Numbering
from moeify.families.part_sizes import UNPLACED, PartSize, count, uncounted
from moeify.families.quantization import stored_under
from moeify.families.registry import moe_layout
from moeify.families.values import Config, text_config


@dataclass(kw_only=True)
class Mixture:
    """The tensors of a mixture, sorted; ``places.prefix`` leads the base model's names.

    ``experts`` maps layer and the name of an ``ExpertTensor`` to what is stored for each expert,
    or for None where one tensor holds them all; ``layers`` maps layers to the names of all their
    other tensors. ``extra`` are tensors of layers beyond the model's own, for predicting further tokens, where
    such layers hold experts too; no class counts them.
    ``guards`` keep dense classes from loading the mixture, and are no parameters.
    """

    checkpoint: Checkpoint
    layout: MoeLayout
    num_layers: int
    moe_layers: tuple[int, ...]
    places: Places
    parts: dict[str, PartSize] = field(default_factory=dict)
    experts: dict[int, dict[str, dict[int | None, StoredTensor]]] = field(default_factory=dict)
    layers: dict[int, set[str]] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)
    heads: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)
    guards: set[str] = field(default_factory=set)
    expert_parameters: dict[int, int] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """What config.json says."""
        return self.checkpoint.config

    @property
    def prefix(self) -> str:
        """What leads the names of the base model's tensors."""
        return self.places.prefix

    @cached_property
    def num_experts(self) -> int:
        """Experts of each MoE layer by config.json; raises ``CheckpointError``."""
        return self.layout.num_experts(self.config)

    @cached_property
    def top_k(self) -> int:
        """Experts that each token visits, by config.json; raises ``CheckpointError``."""
        return self.layout.top_k(self.config)

    @cached_property
    def slices(self) -> int:
        """Slices that experts and what a token visits are divided into; raises ``CheckpointError``."""
        slices = self.layout.rule.slices(self.config)
        if self.num_experts % slices or self.top_k % slices:
            raise CheckpointError(
                f"config.json: {self.layout.rule.slices_key} must divide {self.num_experts} experts and"
                f" {self.top_k} of a token, not be {slices}",
                "mend config.json, or use the one that belongs to these weights",
                path=self.checkpoint.folder,
            )
        sizes = text_config(self.config)
        for key, wanted in self.layout.rule.counts(self.num_experts, self.top_k, slices).items():
            if sizes.get(key) != wanted:
                raise CheckpointError(
                    f"config.json: {key} must be {wanted} where a group is a copy in {slices} slices, not"
                    f" {sizes.get(key)!r}",
                    "mend config.json, or use the one that belongs to these weights",
                    path=self.checkpoint.folder,
                )
        return slices

    @cached_property
    def numbering(self) -> Numbering:
        """Which expert is which copy of which slice; raises ``CheckpointError``."""
        return self.layout.rule.numbering(self.slices, self.num_experts)

    @property
    def shared_slices(self) -> int:
        """Slices beside those of experts, which every token visits."""
        return self.layout.rule.shared_slices(self.config)

    @property
    def blocks(self) -> int:
        """Parts that must stay equally large where experts go: slices, or groups that are no copies; 1 without."""
        return self.numbering.routers if self.groups is None or self.numbering.tied > 1 else self.groups[0]

    @cached_property
    def hidden_size(self) -> int:
        """Width of what routers read; raises ``CheckpointError``."""
        return self.layout.dims(self.config)["H"]

    def numbers(self, layer: int, spec: ExpertTensor) -> list[int]:
        """The experts of ``layer`` of which the files hold ``spec``, ascending."""
        held = self.experts.get(layer, {}).get(spec.name, {})
        if (stacked := held.get(None)) is not None:
            return list(range(stacked.shape[0] if stacked.shape else 0))
        return sorted(number for number in held if number is not None)

    def found_experts(self, layer: int) -> int:
        """Number of experts that the files hold for ``layer``, whatever config.json says."""
        numbers: set[int | None] = set()
        for held in self.experts.get(layer, {}).values():
            if (stored := held.get(None)) is not None:
                return stored.shape[0] if stored.shape else 0
            numbers |= held.keys()
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

    def layer_prefix(self, layer: int) -> str:
        """What leads the names of one layer's tensors."""
        return self.places.prefix_of(layer)

    def router_name(self, layer: int) -> str:
        """Full name of one layer's router weight [E, H]."""
        return self.layer_prefix(layer) + self.layout.router

    def router_parts(self, layer: int) -> tuple[StoredTensor, ...]:
        """What the files hold of one layer's router weight: several tensors where quantised."""
        return tuple(stored_under(self.checkpoint.tensors, self.router_name(layer)))

    def router(self, layer: int) -> StoredTensor | None:
        """One layer's router weight, None where it is missing.

        Raises ``CheckpointError`` for a quantised one and for a wrong shape.
        """
        parts = self.router_parts(layer)
        if not parts:
            return None
        stored, expected = parts[0], (self.num_experts, self.hidden_size)
        others = [part.name for part in parts if part.name != self.router_name(layer)]
        if others or stored.dtype not in FLOAT_DTYPES:
            how = f"{others[0]!r} holds a part of it" if others else f"its dtype is {stored.dtype}"
            raise CheckpointError(
                f"router {self.router_name(layer)!r} is quantised: {how}",
                "use the unquantised checkpoint, or one whose routers were left as they are",
                path=stored.path,
            )
        if stored.shape != expected:
            raise CheckpointError(
                f"router {stored.name!r} has shape {list(stored.shape)}, config.json says {list(expected)}",
                "mend config.json, or use the one that belongs to these weights",
                path=stored.path,
            )
        return stored

    def router_biases(self, layer: int) -> tuple[StoredTensor, ...]:
        """The biases [E] of one layer's router and of its choice, as far as they are stored."""
        full = (self.layer_prefix(layer) + name for name in self.layout.router_biases)
        tensors = self.checkpoint.tensors
        return tuple(tensors[name] for name in full if name in tensors)

    def expert(self, layer: int, spec: ExpertTensor, expert: int) -> tuple[Slice, ...]:
        """Where ``spec`` of one expert lies: its values, and what stands beside quantised ones.

        Raises ``TensorNotFoundError``.
        """
        name = self.layer_prefix(layer) + spec.name.format(expert=expert)
        found = tuple(stored_under(self.checkpoint.tensors, name)) or (self.checkpoint[name],)
        return tuple(_cut(stored, spec, expert) for stored in found)

    def up(self, layer: int) -> tuple[Slice, ExpertTensor]:
        """Where expert 0's up-projection lies, with its gate where the two are interwoven."""
        spec = next(part for part in self.layout.experts if "up" in part.roles)
        part = self.expert(layer, spec, 0)[0]
        if spec.interleaved or spec.neuron_axis != 0:
            return part, spec
        size = part.elements // len(spec.roles)
        return Slice(part.tensor, part.start + spec.roles.index("up") * size, size), spec

    def norm(self, layer: int) -> StoredTensor | None:
        """Weight [H] of the normalisation whose output the router reads, if there is one."""
        return self._of_layer(layer, self.layout.norm)

    def norm_bias(self, layer: int) -> StoredTensor | None:
        """Bias [H] of that normalisation, where the family has one."""
        return self._of_layer(layer, self.layout.norm_bias)

    def _of_layer(self, layer: int, name: str | None) -> StoredTensor | None:
        return None if name is None else self.checkpoint[self.layer_prefix(layer) + name]

    @cached_property
    def further_layers(self) -> tuple[int, ...]:
        """Layers for further tokens that can be cut like the others; none where one lacks a router or experts."""
        layers = tuple(sorted(layer for layer in self.experts if layer >= self.num_layers))
        return layers if all(map(self._is_whole, layers)) else ()

    @cached_property
    def further_experts(self) -> bool:
        """Whether there are experts among the tensors for further tokens."""
        return any(".experts." in name for name in self.extra)

    def _is_whole(self, layer: int) -> bool:
        every, routers = list(range(self.num_experts)), (*self.router_parts(layer)[:1], *self.router_biases(layer))
        return (
            len(routers) > 0
            and all(self.numbers(layer, spec) == every for spec in self.layout.experts)
            and all(self.num_experts in stored.shape for stored in routers)
        )

    @cached_property
    def counted(self) -> dict[str, Place]:
        """The tensors that depend on the number of experts, by name.

        Raises ``CheckpointError`` for one that does not count as many as config.json says.
        """
        found = {}
        for stored in self.checkpoint.tensors.values():
            place = self.places.find(stored)
            single = place.kind == "single"
            if place.layer >= self.num_layers and place.layer not in self.further_layers:
                continue
            if place.kind is not None and (single or counts_experts(stored, self.num_experts, place.axis)):
                found[stored.name] = place
        return found

    def stored(self, further: bool = False) -> Iterator[StoredTensor]:
        """Every tensor in the order of its bytes on disk, without the extra ones unless ``further``."""
        tensors = self.checkpoint.tensors.values()
        order = {path: number for number, path in enumerate(self.checkpoint.shards)}
        for tensor in sorted(tensors, key=lambda t: (order[t.path], t.start)):
            if further or tensor.name not in self.extra:
                yield tensor

    def stored_parameters(self, further: bool = False) -> int:
        """Parameters as stored, tied ones once; those of layers for further tokens count where ``further``."""
        return sum(t.elements for t in self.stored(further) if t.name not in self.guards)

    @property
    def groups(self) -> tuple[int, int] | None:
        """Groups of experts and how many of them a token keeps; None without groups."""
        return self.layout.rule.group_counts(self.config)

    @property
    def quantised(self) -> StoredTensor | None:
        """A tensor of experts whose values are no floats; None where there is none."""
        for name, place in self.counted.items():
            stored = self.checkpoint.tensors[name]
            values = place.kind != "router" and not place.beside
            if values and stored.dtype not in FLOAT_DTYPES:
                return stored
        return None

    def check_plain(self, what: str, hint: str) -> None:
        """Raise ``CheckpointError`` for quantised experts, of which ``what`` is true."""
        stored = self.quantised
        if stored is not None:
            raise CheckpointError(f"tensor {stored.name!r} has dtype {stored.dtype}: {what}", hint, path=stored.path)


def _cut(stored: StoredTensor, spec: ExpertTensor, expert: int) -> Slice:
    if not spec.fused or stored.elements == 1:
        return whole(stored)
    size = stored.elements // max(stored.shape[0], 1)
    return Slice(stored, expert * size, size)


def open_mixture(checkpoint: Checkpoint) -> Mixture:
    """Sort a mixture that commands can work on: its config and the names in its files fit.

    Raises ``UnsupportedModelError`` for other checkpoints, and ``CheckpointError``.
    """
    mixture = sort_mixture(checkpoint, moe_layout(checkpoint.config, checkpoint.tensors))
    if not mixture.moe_layers:
        raise CheckpointError("config.json makes no layer a mixture", path=checkpoint.folder)
    first, norm = mixture.moe_layers[0], mixture.layout.norm
    if norm is not None and mixture.layer_prefix(first) + norm not in checkpoint.tensors:
        raise TensorNotFoundError(
            mixture.layout.layer.format(layer=first) + norm,
            checkpoint.folder,
            "the checkpoint is incomplete: download it again",
        )
    _ = mixture.slices, mixture.hidden_size  # raises before any work
    return mixture


def sort_mixture(checkpoint: Checkpoint, layout: MoeLayout) -> Mixture:
    """Sort all tensors by what they are; raises ``CheckpointError`` for an unusable config."""
    checkpoint = unflattened(checkpoint, layout)
    config, tensors = checkpoint.config, checkpoint.tensors
    num_layers, moe_layers = layout.dims(config)["L"], layout.moe_layers(config)
    prefix = layout_prefix(layout, tensors)
    mixture = Mixture(
        checkpoint=checkpoint,
        layout=layout,
        num_layers=num_layers,
        moe_layers=moe_layers,
        places=Places(layout, config, prefix, num_layers, moe_layers),
    )
    not_counted = tuple(uncounted(mixture))
    for stored in tensors.values():
        place = mixture.places.find(stored)
        _file(mixture, stored, place)
        count(mixture, stored, place, not_counted)
    return mixture


def _file(mixture: Mixture, stored: StoredTensor, place: Place) -> None:
    if place.part == "ignored" if place.layer < 0 else place.layer >= mixture.num_layers:
        mixture.extra.add(stored.name)
    if place.spec is not None:
        if not place.beside:
            roles = mixture.experts.setdefault(place.layer, {})
            roles.setdefault(place.spec.name, {}).setdefault(place.expert if place.kind == "single" else None, stored)
    elif place.part == "unknown":
        mixture.unknown.append(stored.name)
    elif place.part == "guard":
        mixture.guards.add(stored.name)
    elif place.part in UNPLACED:
        return
    elif place.layer >= 0:
        mixture.layers.setdefault(place.layer, set()).add(place.name)
    else:
        outer = place.name in mixture.layout.rest.outer
        (mixture.outer if outer else mixture.heads).add(place.name)
