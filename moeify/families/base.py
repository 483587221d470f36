"""The shape of the data that describes a dense type: which tensor is what in which class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from moeify.errors import CheckpointError
from moeify.families.moe_layout import Rest
from moeify.families.values import Config, Dims, Shape, resolve_shape, ties_embeddings


@dataclass(frozen=True, kw_only=True)
class FfnTensor:
    """One weight or bias of a dense FFN, named relative to its layer.

    ``role`` is gate, up, down, up_bias or down_bias.
    """

    role: str
    name: str
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a class adds to the base model, for instance ``ForMaskedLM``.

    ``prefix`` leads the base model's tensor names inside this class. ``tied`` maps a tensor that
    files may leave out to the tensor it shares its values with; ``lacks`` names base tensors that
    this class is built without; ``switches`` maps tensors to the config key that turns them off.
    """

    prefix: str = ""
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    switches: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DenseLayout:
    """Tensor names of a dense type, relative to the base model (no ``bert.``, no ``model.``).

    What has a default is called as in Llama. ``class_prefix`` is the class's name without its head,
    ``activation`` config.json's key of what the FFN applies, and what it is where the key is
    missing. ``aliases`` maps endings of old names to today's; ``joined`` maps a tensor that files
    have in a layer to those of ``per_layer`` and ``ffn`` whose rows it holds, one after the other.
    ``kinds`` gives each layer's kind, where each has tensors of its own ``by_kind``; ``towers``
    lead the full names of other modalities' tensors, which are carried along. ``buffers`` are
    endings of tensors that are recomputed and not carried over; ``optional`` names tensors,
    relative to the base model or to a layer, that may be missing, ``only_if`` those that a class has where config.json
    says so. ``encoder`` and ``gives`` are as in
    ``MoeLayout``. ``ignored`` leads the names of tensors that the class leaves out on purpose,
    which are carried along as well. ``canonical`` gives a config its usual keys.
    """

    model_type: str
    class_prefix: str
    outer: Mapping[str, Shape]
    per_layer: Mapping[str, Shape]
    ffn: tuple[FfnTensor, ...]
    heads: Mapping[str, Head]
    dims: Callable[[Config], Dims]
    prefixes: tuple[str, ...] = ("model.", "transformer.")
    layer: str = "layers.{layer}."
    norm: str | None = "post_attention_layernorm.weight"
    norm_bias: str | None = None
    norm_offset: float = 0.0
    activation: tuple[str, str] = ("hidden_act", "silu")
    ties_by_default: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: Callable[[Config], Sequence[str]] | None = None
    by_kind: Mapping[str, Mapping[str, Shape]] = field(default_factory=dict)
    towers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)
    optional: frozenset[str] = frozenset()
    only_if: Mapping[str, Callable[[Config], bool]] = field(default_factory=dict)
    encoder: bool = False
    gives: int = 0
    canonical: Callable[[Config], Config] = dict

    def tied(self, head: Head, config: Config) -> frozenset[str]:
        """The tensors of ``head`` that share their values with others, and may be missing."""
        return frozenset(head.tied if ties_embeddings(config, self.ties_by_default) else ())

    def of(self, config: Config) -> DenseLayout:
        """The layout with those tensors of the FFN that a class has which ``config`` describes."""
        absent = {name for name, holds in self.only_if.items() if not holds(config)}
        ffn = tuple(part for part in self.ffn if part.name not in absent)
        return self if len(ffn) == len(self.ffn) else replace(self, ffn=ffn)

    def num_layers(self, config: Config) -> int:
        """Number of transformer layers."""
        return self.dims(config)["L"]

    def base_tensors(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Every tensor of the base model and its shape, FFNs included."""
        dims = self.dims(config)
        alike = {**self.per_layer, **{part.name: part.shape for part in self.ffn}}
        off = {name for name, holds in self.only_if.items() if not holds(config)}

        def shapes(prefix: str, named: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
            return {prefix + name: resolve_shape(shape, dims) for name, shape in named.items() if name not in off}

        names = shapes("", self.outer)
        for number, kind in enumerate(self._kinds(config)):
            names |= shapes(self.layer.format(layer=number), {**alike, **self.by_kind.get(kind, {})})
        return names

    def _kinds(self, config: Config) -> Sequence[str]:
        count = self.num_layers(config)
        kinds = self.kinds(config) if self.kinds else [""] * count
        if len(kinds) != count:
            raise CheckpointError(f"config.json has {count} layers and the kinds of {len(kinds)}")
        return kinds

    def modern_name(self, name: str) -> str:
        """A tensor's name as transformers spells it today."""
        for old, new in self.aliases.items():
            if name.endswith(old) and not name.endswith(new):
                name = name.removesuffix(old) + new
        return name

    def architecture(self, config: Config) -> str:
        """Name of the class, by ``architectures``; the first where nothing is said, the base."""
        named = config.get("architectures") or [self.class_prefix + next(iter(self.heads))]
        return str(named[0]) if isinstance(named, list) else str(named)

    def head_name(self, config: Config) -> str:
        """The key in ``heads`` of the class; raises ``CheckpointError`` for an unknown one."""
        name = self.architecture(config)
        suffix = name.removeprefix(self.class_prefix)
        if name == suffix or suffix not in self.heads:
            known = ", ".join(self.class_prefix + head for head in self.heads)
            raise CheckpointError(
                f"the class {name!r} is no {self.model_type} class that moeify converts",
                f"set architectures in config.json to one of: {known}",
            )
        return suffix

    def head(self, config: Config) -> Head:
        """The head of the class; raises ``CheckpointError`` for an unknown class."""
        head = self.heads[self.head_name(config)]
        off = [tensor for tensor, key in head.switches.items() if not config.get(key, True)]
        tensors = {tensor: shape for tensor, shape in head.tensors.items() if tensor not in off}
        return replace(head, tensors=tensors)

    @property
    def varying(self) -> frozenset[str]:
        """Tensors that layers of some kinds have."""
        return frozenset(name for names in self.by_kind.values() for name in names)

    def rest(self, shared: tuple[str, ...] = ()) -> Rest:
        """The tensors that a mixture takes over from this type, with ``shared`` ones of its own."""
        heads, layers = self.heads.values(), (self.per_layer, *self.by_kind.values())
        names = tuple(dict.fromkeys(name for head in heads for name in head.tensors))
        return Rest(
            outer=tuple(self.outer),
            per_layer=tuple(dict.fromkeys(n for part in layers for n in part)),
            ffn=tuple(part.name for part in self.ffn),
            shared=shared,
            heads=names,
            tied={n: own.removeprefix(h.prefix) for h in heads for n, own in h.tied.items()},
            ties_by_default=self.ties_by_default,
            towers=self.towers,
            ignored=self.ignored,
            buffers=self.buffers,
            lacks={
                end: (*(name for name in names if name not in head.tensors), *sorted(head.lacks))
                for end, head in self.heads.items()
            },
            optional=(self.optional | self.only_if.keys()) & frozenset(self.outer),
            varying=self.varying,
        )
