"""The shapes of the data that describe a family: its dense half and its MoE half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moeify.errors import CheckpointError

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
    "Shape",
    "listed_moe_layers",
    "num_labels",
    "own_moe_config",
    "positive",
    "resolve_shape",
]

Config = dict[str, Any]
"""config.json as a dictionary."""

Shape = tuple[str | int, ...]
"""Dimensions by symbol (H hidden, F FFN width, V vocabulary, ...) or by number."""

Dims = dict[str, int]
"""What the symbols of a ``Shape`` stand for in one config."""


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
    this class is built without.
    """

    prefix: str = ""
    moe_prefix: str | None = None  # where it differs from the dense class's
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()

    @property
    def prefix_out(self) -> str:
        """The prefix in the MoE class."""
        return self.prefix if self.moe_prefix is None else self.moe_prefix


@dataclass(frozen=True, kw_only=True)
class DenseLayout:
    """Tensor names of a dense family, relative to the base model (no ``bert.``, no ``model.``).

    ``aliases`` maps endings of old names to today's; ``buffers`` are endings of tensors that are
    recomputed and not carried over; ``optional`` names tensors, relative to the base model or to a
    layer, that may be missing.
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
class ExpertTensor:
    """A tensor of the experts, relative to its layer.

    ``name`` holds ``{expert}`` when each expert has a tensor of its own; otherwise one tensor
    stacks all experts along axis 0. ``roles`` lists what is concatenated along the neuron axis;
    ``shape`` is that of one expert.
    """

    name: str
    roles: tuple[str, ...]
    shape: Shape

    @property
    def fused(self) -> bool:
        """Whether one tensor holds all experts."""
        return "{expert}" not in self.name


@dataclass(frozen=True, kw_only=True)
class ExtraTensor:
    """A tensor that the MoE class demands and the dense model lacks.

    ``std`` 0 means zeros; otherwise values are drawn from N(0, std^2).
    """

    name: str
    shape: Shape
    std: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MoeLayout:
    """Tensor names of an MoE family, relative to the base model, and where its config says what.

    ``norm`` and ``norm_bias`` are the normalisation whose output the router reads.
    ``router_module`` is the router's path within its layer once transformers has loaded it, where
    that is not its tensor's name.
    """

    model_type: str
    prefixes: tuple[str, ...]
    layer: str
    router: str
    experts: tuple[ExpertTensor, ...]
    norm: str
    norm_bias: str | None
    dims: Callable[[Config], Dims]
    moe_layers: Callable[[Config], tuple[int, ...]]
    top_k_keys: tuple[str, ...] = ("num_experts_per_tok",)
    num_experts_keys: tuple[str, ...] = ("num_experts",)
    extras: tuple[ExtraTensor, ...] = ()
    router_module: str | None = None

    def num_experts(self, config: Config) -> int:
        """Number of experts of each MoE layer."""
        return _first(config, self.num_experts_keys)

    def top_k(self, config: Config) -> int:
        """Number of experts that each token visits."""
        return _first(config, self.top_k_keys)


@dataclass(frozen=True, kw_only=True)
class MoeSettings:
    """What upcycling decides and a family writes into the MoE config."""

    num_experts: int
    top_k: int
    moe_layers: tuple[int, ...]
    num_layers: int

    @property
    def dense_layers(self) -> list[int]:
        """Layers that keep their dense FFN."""
        return [layer for layer in range(self.num_layers) if layer not in self.moe_layers]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A dense family, the MoE family it becomes, and how config.json is carried across.

    ``class_prefixes`` are the dense and the MoE class names without their head. ``remote_code``
    says that the MoE classes are moeify's own and travel inside the checkpoint. ``notes`` are
    sentences for the model card.
    """

    model_type: str
    class_prefixes: tuple[str, str]
    dense: DenseLayout
    moe: MoeLayout
    to_moe_config: Callable[[Config, MoeSettings], Config]
    remote_code: bool = False
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
        return self.dense.heads[suffix]

    def moe_architecture(self, config: Config) -> str:
        """Name of the MoE class that takes the dense class's place."""
        suffix = self.architecture(config).removeprefix(self.class_prefixes[0])
        return self.class_prefixes[1] + suffix


def resolve_shape(shape: Shape, dims: Dims) -> tuple[int, ...]:
    """``shape`` in numbers."""
    return tuple(dims[size] if isinstance(size, str) else size for size in shape)


def _first(config: Config, keys: tuple[str, ...]) -> int:
    for key in keys:
        if config.get(key) is not None:
            return positive(config, key)
    raise CheckpointError(f"config.json has no {' or '.join(keys)}")


def positive(config: Config, key: str, default: int | None = None) -> int:
    """The positive integer under ``key``; raises ``CheckpointError`` for anything else."""
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(f"config.json: {key} must be a positive integer, not {value!r}")
    return value


def num_labels(config: Config) -> int:
    """Number of classes of a classification head, as transformers counts them."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else positive(config, "num_labels", 2)


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
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }
