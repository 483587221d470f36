"""The tensors of a dense checkpoint sorted, for whoever copies, counts or judges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from moeify.checkpoint.header import StoredTensor, zeros
from moeify.checkpoint.naming import some
from moeify.families.base import Config, DenseLayout, Head, resolve_shape
from moeify.families.problems import grouped
from moeify.families.quantization import QUANTIZATION, quantization_kind, quantized_as

__all__ = ["DenseTensors", "modern_name", "sort_dense"]


@dataclass(kw_only=True)
class DenseTensors:
    """What a dense class makes of a checkpoint's tensors and of its config.

    ``base`` maps names relative to the base model, ``heads`` and ``unknown`` full ones as the
    class has them today. ``config`` has its usual keys. ``filled`` stand in, under their names in
    ``base`` or ``heads``, for what no file holds and a class makes up as it always does; ``notes``
    say so. ``missing`` is what nothing stands in for. ``twice`` are files' names of one tensor.
    ``quantised`` says how, where weights are.
    """

    layout: DenseLayout
    head: Head
    config: Config
    expected: dict[str, tuple[int, ...]]
    tied: frozenset[str]
    base: dict[str, StoredTensor] = field(default_factory=dict)
    heads: dict[str, StoredTensor] = field(default_factory=dict)
    unknown: dict[str, StoredTensor] = field(default_factory=dict)
    buffers: list[StoredTensor] = field(default_factory=list)
    twice: list[tuple[str, StoredTensor, StoredTensor]] = field(default_factory=list)
    filled: dict[str, StoredTensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quantised: str | None = None

    @cached_property
    def roots(self) -> frozenset[str]:
        """What names of the base model begin with."""
        return frozenset(known.split(".")[0] for known in self.expected)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What ``base`` and ``heads`` should hold."""
        dims = self.layout.dims(self.config)
        heads = {name: resolve_shape(shape, dims) for name, shape in self.head.tensors.items()}
        return self.expected | heads

    def relative(self, name: str) -> str | None:
        """A full name as it is today without the base model's prefix; None for one of the head."""
        for prefix in (self.head.prefix, *self.layout.prefixes, ""):
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest.split(".")[0] in self.roots:
                return rest
        return None

    def is_parameter(self, name: str) -> bool:
        """Whether the class counts a tensor of ``base`` or ``heads`` among its parameters."""
        return name not in self.head.lacks and name not in self.tied


def sort_dense(
    tensors: Mapping[str, StoredTensor], config: Config, layout: DenseLayout
) -> DenseTensors:
    """Sort ``tensors``; raises ``CheckpointError`` for a config that describes no dense class."""
    config = layout.canonical(config)
    head = layout.head(config)
    found = DenseTensors(
        layout=layout,
        head=head,
        config=config,
        expected=layout.base_tensors(config),
        tied=layout.tied(head, config),
    )
    for stored in tensors.values():
        _place(found, stored)
    _swap_tied(found)
    absent = list(_absent(found))
    found.quantised = quantized_as(found.base.values(), absent, _others(found), config)
    if found.quantised is None:
        _fill(found, absent)
        _drop_leftover(found)
    return found


def modern_name(name: str, layout: DenseLayout) -> str:
    """A tensor's name as transformers spells it today."""
    for old, new in layout.aliases.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def _place(found: DenseTensors, stored: StoredTensor) -> None:
    name = modern_name(stored.name, found.layout)
    relative = found.relative(name)
    if name.endswith(found.layout.buffers):
        found.buffers.append(stored)
        return
    if relative in found.expected:
        name, into = relative, found.base
    elif name in found.head.tensors:
        into = found.heads
    else:
        name = name if relative is None else found.head.prefix + relative
        into = found.unknown
    if name in into:
        found.twice.append((name, into[name], stored))
    else:
        into[name] = stored


def _swap_tied(found: DenseTensors) -> None:
    """A tensor that stands only under the name that may be left out goes to the other one."""
    for name, origin in found.head.tied.items():
        own = origin.removeprefix(found.head.prefix)
        place = found.base if own in found.expected else found.heads
        if name in found.tied and name in found.heads and own not in place:
            place[own] = found.heads.pop(name)


def _absent(found: DenseTensors) -> Iterator[str]:
    """What the class has, no file holds, and no other tensor is shared with."""
    optional = found.layout.optional
    for name in found.expected:
        inner = _inner(name, found.layout)
        if name not in found.base and name not in optional and inner not in optional:
            yield name
    yield from (n for n in found.head.tensors if n not in found.heads and n not in found.tied)


def _inner(name: str, layout: DenseLayout) -> str | None:
    """A relative name within its layer; None outside of the layers."""
    root = layout.layer.split("{")[0]
    return name.removeprefix(root).partition(".")[2] if name.startswith(root) else None


def _fill(found: DenseTensors, absent: list[str]) -> None:
    """Biases that a class makes up, one that it once shared, and what is really missing."""
    bare = set(_biases_of_no_layer(found, absent))
    other = next(iter(found.base.values()), None)
    blank = []
    for name in absent:
        origin = found.heads.get(found.head.tied.get(name, ""))
        inner = _inner(name, found.layout)
        if origin is not None:
            found.filled[name] = origin
            found.notes.append(
                f"{name} is missing, and {origin.name} is taken, as before transformers 5, which"
                " takes zeros"
            )
        elif other and bare and name.endswith(".bias") and (inner is None or inner in bare):
            weight = found.base.get(f"{name.removesuffix('bias')}weight", other)
            found.filled[name] = zeros(name, weight.dtype, found.shapes[name])
            blank.append(name)
        else:
            found.missing.append(name)
    if blank:
        found.notes.append(
            f"{len(blank)} biases are missing, and zeros are taken, as in transformers:"
            f" {some(grouped(blank))}"
        )


def _biases_of_no_layer(found: DenseTensors, absent: list[str]) -> Iterator[str]:
    """What every layer lacks was never there; what one of them lacks was lost."""
    layers = Counter(_inner(name, found.layout) for name in absent)
    total = found.layout.num_layers(found.config)
    return (n for n, count in layers.items() if n and n.endswith(".bias") and count == total)


def _others(found: DenseTensors) -> Iterator[str]:
    """Unknown tensors, relative to the base model where they lie in it."""
    return (found.relative(name) or name for name in found.unknown)


def _drop_leftover(found: DenseTensors) -> None:
    """Leave out what config.json says of weights that are no longer quantised."""
    kind = quantization_kind(found.config)
    if found.config.pop(QUANTIZATION, None) is not None:
        found.notes.append(
            f"config.json says quantised ({kind}), which the weights are not: {QUANTIZATION} is"
            " left out"
        )
