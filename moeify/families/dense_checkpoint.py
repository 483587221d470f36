"""A dense checkpoint: every tensor sorted once, under the name that its class has for it today."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from moeify.checkpoint.header import StoredTensor, zeros
from moeify.checkpoint.naming import some
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.slices import rows_of
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.base import DenseLayout, Head
from moeify.families.problems import grouped
from moeify.families.quantization import QUANTIZATION, quantization_kind, quantized_as
from moeify.families.values import Config, resolve_shape


@dataclass(kw_only=True)
class Dense:
    """What a dense class makes of a checkpoint's tensors and of its config.

    ``base`` maps names relative to the base model, ``heads`` and ``unknown`` full ones as the
    class has them today; ``unknown`` are tensors that neither declares. The checkpoint's config
    has its usual keys. ``filled`` names what no file holds and the class makes up as it always
    does, with a stand-in in ``base`` or ``heads``; ``notes`` say so. ``missing`` is what nothing
    stands in for. ``twice`` are files' names of one tensor. ``quantised`` says how, where weights
    are.
    """

    checkpoint: Checkpoint
    layout: DenseLayout
    head: Head
    expected: dict[str, tuple[int, ...]]
    tied: frozenset[str]
    base: dict[str, StoredTensor] = field(default_factory=dict)
    heads: dict[str, StoredTensor] = field(default_factory=dict)
    unknown: dict[str, StoredTensor] = field(default_factory=dict)
    buffers: list[StoredTensor] = field(default_factory=list)
    twice: list[tuple[str, StoredTensor, StoredTensor]] = field(default_factory=list)
    filled: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quantised: str | None = None

    @property
    def config(self) -> Config:
        """What config.json says, under its usual keys."""
        return self.checkpoint.config

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return self.layout.num_layers(self.config)

    @property
    def parameters(self) -> int:
        """What the class holds, tied tensors once."""
        return sum(t.elements for name, t in self.held.items() if self.is_parameter(name))

    @property
    def held(self) -> dict[str, StoredTensor]:
        """``base`` and ``heads``."""
        return self.base | self.heads

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

    @property
    def misshapen(self) -> list[str]:
        """Names of what has another shape than config.json says."""
        held = self.held
        return [n for n, shape in self.shapes.items() if n in held and held[n].shape != shape]

    @cached_property
    def joined(self) -> dict[str, tuple[str, ...]]:
        """Tensors that hold several of ``base`` one after the other, by their relative names."""
        prefixes = [self.layout.layer.format(layer=layer) for layer in range(self.num_layers)]
        return {
            prefix + name: tuple(prefix + part for part in parts)
            for prefix in prefixes
            for name, parts in self.layout.joined.items()
        }

    def ffn(self, layer: int) -> dict[str, StoredTensor]:
        """The FFN tensors of one layer by role."""
        prefix = self.layout.layer.format(layer=layer)
        return {part.role: self.base[prefix + part.name] for part in self.layout.ffn}

    def relative(self, name: str) -> str | None:
        """A full name as it is today without the base model's prefix; None for one of the head."""
        for prefix in (self.head.prefix, *self.layout.prefixes, ""):
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest.split(".")[0] in self.roots:
                return rest
        return None

    def known_as(self, name: str) -> str | None:
        """A full name in a file relative to the base model; None for one of the head."""
        modern = self.layout.modern_name(name)
        return None if modern.endswith(self.layout.buffers) else self.relative(modern)

    def is_parameter(self, name: str) -> bool:
        """Whether the class counts a tensor of ``base`` or ``heads`` among its parameters."""
        return name not in self.head.lacks and name not in self.tied


def sort_dense(checkpoint: Checkpoint, layout: DenseLayout) -> Dense:
    """Sort all tensors; raises ``CheckpointError`` for a config that describes no dense class."""
    config = layout.canonical(checkpoint.config)
    layout = layout.of(config)
    head = layout.head(config)
    found = Dense(
        checkpoint=replace(checkpoint, config=config),
        layout=layout,
        head=head,
        expected=layout.base_tensors(config),
        tied=layout.tied(head, config),
    )
    for stored in checkpoint.tensors.values():
        _place(found, stored)
    _swap_tied(found)
    absent = list(_absent(found))
    found.quantised = quantized_as(found.base.values(), (*absent, *found.joined), _others(found), config)
    if found.quantised is None:
        _fill(found, absent)
        _drop_leftover(found)
    return found


def open_dense(checkpoint: Checkpoint, layout: DenseLayout, *, headless: bool = False) -> Dense:
    """Sort a checkpoint that commands can work on; ``headless`` lets its head be missing.

    Raises ``TensorNotFoundError`` when a tensor is missing and ``CheckpointError`` when a shape
    disagrees with config.json, or weights are quantised.
    """
    found = sort_dense(checkpoint, layout)
    folder = checkpoint.folder
    if found.quantised is not None:
        raise CheckpointError(
            f"{folder.name} is quantised ({found.quantised})", "upcycle the unquantised checkpoint", path=folder
        )
    for name, first, second in found.twice:
        raise CheckpointError(
            f"tensors {first.name!r} and {second.name!r} are both {name!r}",
            "remove one of them from the checkpoint",
            path=folder,
        )
    for name in found.missing:
        if name in found.expected:
            hint = "the checkpoint is incomplete: download it again"
            raise TensorNotFoundError(name, folder, hint)
        if not headless:
            raise TensorNotFoundError(
                name,
                folder,
                f"{layout.architecture(found.config)} needs it: set architectures in"
                " config.json to the class that the checkpoint holds",
            )
    for name in found.misshapen:
        stored = found.held[name]
        raise CheckpointError(
            f"tensor {stored.name!r} has shape {list(stored.shape)}, config.json says {list(found.shapes[name])}",
            "mend config.json, or use the one that belongs to these weights",
            path=stored.path,
        )
    return found


def _place(found: Dense, stored: StoredTensor) -> None:
    name = found.layout.modern_name(stored.name)
    relative = found.relative(name)
    if name.endswith(found.layout.buffers):
        found.buffers.append(stored)
    elif relative in found.joined and stored.shape:
        _take_apart(found, stored, relative)
    elif relative in found.expected:
        _keep(found, found.base, relative, stored)
    elif name in found.head.tensors or name.startswith(found.layout.towers):
        _keep(found, found.heads, name, stored)
    else:
        name = name if relative is None else found.head.prefix + relative
        _keep(found, found.unknown, name, stored)


def _keep(found: Dense, into: dict[str, StoredTensor], name: str, stored: StoredTensor) -> None:
    if name in into:
        found.twice.append((name, into[name], stored))
    else:
        into[name] = stored


def _take_apart(found: Dense, stored: StoredTensor, relative: str) -> None:
    """Rows of one tensor as those that they are; the last has what is left, right or not."""
    parts, first = found.joined[relative], 0
    for part in parts:
        left = max(stored.shape[0] - first, 0)
        count = left if part == parts[-1] else min(found.expected[part][0], left)
        _keep(found, found.base, part, rows_of(stored, found.head.prefix + part, first, count))
        first += count


def _swap_tied(found: Dense) -> None:
    """A tensor that stands only under the name that may be left out goes to the other one."""
    for name, origin in found.head.tied.items():
        own = origin.removeprefix(found.head.prefix)
        place = found.base if own in found.expected else found.heads
        if name in found.tied and name in found.heads and own not in place:
            place[own] = found.heads.pop(name)


def _absent(found: Dense) -> Iterator[str]:
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


def _fill(found: Dense, absent: list[str]) -> None:
    """Biases that a class makes up, one that it once shared, and what is really missing."""
    bare = set(_biases_of_no_layer(found, absent))
    other = next(iter(found.base.values()), None)
    blank = []
    for name in absent:
        origin = found.heads.get(found.head.tied.get(name, ""))
        inner = _inner(name, found.layout)
        if origin is not None:
            found.filled.add(name)
            found.heads[name] = origin
            found.notes.append(
                f"{name} is missing, and {origin.name} is taken, as before transformers 5, which takes zeros"
            )
        elif other and bare and name.endswith(".bias") and (inner is None or inner in bare):
            weight = found.base.get(f"{name.removesuffix('bias')}weight", other)
            found.filled.add(name)
            into = found.base if name in found.expected else found.heads
            into[name] = zeros(name, weight.dtype, found.shapes[name])
            blank.append(name)
        else:
            found.missing.append(name)
    if blank:
        found.notes.append(
            f"{len(blank)} biases are missing, and zeros are taken, as in transformers: {some(grouped(blank))}"
        )


def _biases_of_no_layer(found: Dense, absent: list[str]) -> Iterator[str]:
    """What every layer lacks was never there; what one of them lacks was lost."""
    layers = Counter(_inner(name, found.layout) for name in absent)
    total = found.layout.num_layers(found.config)
    return (n for n, count in layers.items() if n and n.endswith(".bias") and count == total)


def _others(found: Dense) -> Iterator[str]:
    """Unknown tensors, relative to the base model where they lie in it."""
    return (found.relative(name) or name for name in found.unknown)


def _drop_leftover(found: Dense) -> None:
    """Leave out what config.json says of weights that are no longer quantised."""
    kind = quantization_kind(found.config)
    if found.config.pop(QUANTIZATION, None) is not None:
        found.notes.append(
            f"config.json says quantised ({kind}), which the weights are not: {QUANTIZATION} is left out"
        )
