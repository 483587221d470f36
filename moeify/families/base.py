"""The shapes of the data that describe a family: its dense half and its MoE half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from moeify.errors import CheckpointError
from moeify.families.moe_layout import ExpertTensor, ExtraTensor, MoeLayout, Rest, RouterRule
from moeify.families.values import (
    Config,
    Dims,
    Shape,
    num_labels,
    positive,
    resolve_shape,
    ties_embeddings,
)

__all__ = [
    "Config",
    "DenseLayout",
    "ExpertTensor",
    "ExtraTensor",
    "Family",
    "FfnTensor",
    "Head",
    "MoeLayout",
    "MoeSettings",
    "Rest",
    "RouterRule",
    "Shape",
    "listed_moe_layers",
    "num_labels",
    "own_dense_config",
    "own_moe_config",
    "positive",
    "resolve_shape",
    "rest_of",
]


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
    moe_prefix: str | None = None  # where it differs from the dense class's
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    switches: Mapping[str, str] = field(default_factory=dict)

    @property
    def prefix_out(self) -> str:
        """The prefix in the MoE class."""
        return self.prefix if self.moe_prefix is None else self.moe_prefix


@dataclass(frozen=True, kw_only=True)
class DenseLayout:
    """Tensor names of a dense family, relative to the base model (no ``bert.``, no ``model.``).

    ``aliases`` maps endings of old names to today's; ``buffers`` are endings of tensors that are
    recomputed and not carried over; ``optional`` names tensors, relative to the base model or to a
    layer, that may be missing. ``canonical`` gives a config its usual keys.
    """

    prefixes: tuple[str, ...]
    layer: str
    outer: Mapping[str, Shape]
    per_layer: Mapping[str, Shape]
    ffn: tuple[FfnTensor, ...]
    norm: str
    norm_bias: str | None
    heads: Mapping[str, Head]
    dims: Callable[[Config], Dims]
    ties_by_default: bool
    aliases: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    canonical: Callable[[Config], Config] = dict

    def tied(self, head: Head, config: Config) -> frozenset[str]:
        """The tensors of ``head`` that share their values with others, and may be missing."""
        return frozenset(head.tied if ties_embeddings(config, self.ties_by_default) else ())

    def num_layers(self, config: Config) -> int:
        """Number of transformer layers."""
        return self.dims(config)["L"]

    def base_tensors(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Every tensor of the base model and its shape, FFNs included."""
        dims = self.dims(config)
        layer = {**self.per_layer, **{part.name: part.shape for part in self.ffn}}
        names = {name: resolve_shape(shape, dims) for name, shape in self.outer.items()}
        for number in range(dims["L"]):
            prefix = self.layer.format(layer=number)
            names |= {prefix + name: resolve_shape(shape, dims) for name, shape in layer.items()}
        return names


@dataclass(frozen=True, kw_only=True)
class MoeSettings:
    """What upcycling decides and a family writes into the MoE config.

    ``renormalise`` has the weights of the chosen experts sum to 1. Without it they sum to K/E as
    long as the router is near zero, and the experts are scaled by E/K to make up for it.
    ``route_by`` says what a router decides for, token or sequence. ``width`` is that of an expert,
    None for the dense FFN's.
    """

    num_experts: int
    top_k: int
    moe_layers: tuple[int, ...]
    num_layers: int
    renormalise: bool = True
    route_by: str = "token"
    width: int | None = None

    @property
    def dense_layers(self) -> list[int]:
        """Layers that keep their dense FFN."""
        return [layer for layer in range(self.num_layers) if layer not in self.moe_layers]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A dense family, the MoE family it becomes, and how config.json is carried across.

    ``class_prefixes`` are the dense and the MoE class names without their head. ``remote_code``
    says that the MoE classes are moeify's own and travel inside the checkpoint. ``notes`` are
    sentences for the model card. ``gguf_renormalises`` says whether llama.cpp and mlx-lm
    renormalise this class's expert weights; None where they do not know the class.
    """

    model_type: str
    class_prefixes: tuple[str, str]
    dense: DenseLayout
    moe: MoeLayout
    to_moe_config: Callable[[Config, MoeSettings], Config]
    to_dense_config: Callable[[Config], Config]
    remote_code: bool = False
    gguf_renormalises: bool | None = None
    notes: tuple[str, ...] = ()

    def architecture(self, config: Config) -> str:
        """Name of the dense class, by ``architectures``; the base class where nothing is said."""
        named = config.get("architectures") or [f"{self.class_prefixes[0]}Model"]
        return str(named[0]) if isinstance(named, list) else str(named)

    def head(self, config: Config) -> Head:
        """The head of the dense class; raises ``CheckpointError`` for an unknown class."""
        name = self.architecture(config)
        suffix = name.removeprefix(self.class_prefixes[0])
        if name == suffix or suffix not in self.dense.heads:
            known = ", ".join(self.class_prefixes[0] + head for head in self.dense.heads)
            raise CheckpointError(
                f"the class {name!r} is no {self.model_type} class that moeify converts",
                f"set architectures in config.json to one of: {known}",
            )
        head = self.dense.heads[suffix]
        off = [tensor for tensor, key in head.switches.items() if not config.get(key, True)]
        tensors = {tensor: shape for tensor, shape in head.tensors.items() if tensor not in off}
        return replace(head, tensors=tensors)

    def moe_architecture(self, config: Config) -> str:
        """Name of the MoE class that takes the dense class's place."""
        suffix = self.architecture(config).removeprefix(self.class_prefixes[0])
        return self.class_prefixes[1] + suffix

    def dense_architecture(self, config: Config) -> str:
        """Name of the dense class that takes an MoE class's place; raises ``CheckpointError``."""
        named = config.get("architectures") or [f"{self.class_prefixes[1]}Model"]
        name = str(named[0])
        suffix = name.removeprefix(self.class_prefixes[1])
        if name == suffix or suffix not in self.dense.heads:
            raise CheckpointError(
                f"the class {name!r} has no dense {self.model_type} class beside it",
                "mend architectures in config.json",
            )
        return self.class_prefixes[0] + suffix


def rest_of(dense: DenseLayout, shared: tuple[str, ...] = ()) -> Rest:
    """The tensors that an MoE family takes over from the dense family it is upcycled from."""
    heads = dense.heads.values()
    names = tuple(dict.fromkeys(name for head in heads for name in head.tensors))
    return Rest(
        outer=tuple(dense.outer),
        per_layer=tuple(dense.per_layer),
        ffn=tuple(part.name for part in dense.ffn),
        shared=shared,
        heads=names,
        tied={n: own.removeprefix(h.prefix) for h in heads for n, own in h.tied.items()},
        ties_by_default=dense.ties_by_default,
        buffers=dense.buffers,
        lacks={
            end: (*(name for name in names if name not in head.tensors), *sorted(head.lacks))
            for end, head in dense.heads.items()
        },
    )


def listed_moe_layers(config: Config) -> tuple[int, ...]:
    """MoE layers of moeify's own classes: those in ``moe_layers``, all where it is null."""
    listed = config.get("moe_layers")
    total = positive(config, "num_hidden_layers" if "num_hidden_layers" in config else "n_layer")
    return tuple(range(total)) if listed is None else tuple(listed)


def own_moe_config(config: Config, settings: MoeSettings) -> Config:
    """The config of moeify's own MoE classes: the dense one plus the MoE's keys."""
    return {
        **config,
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "moe_layers": list(settings.moe_layers),
        "route_by": settings.route_by,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }


def own_dense_config(config: Config) -> Config:
    """The dense config inside that of moeify's own MoE classes."""
    return {key: value for key, value in config.items() if key not in _OWN_KEYS}


_OWN_KEYS = (
    "num_experts", "num_experts_per_tok", "moe_layers", "route_by", "norm_topk_prob",
    "output_router_logits", "router_aux_loss_coef", "router_z_loss_coef", "experts_implementation",
)  # fmt: skip
