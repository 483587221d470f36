"""The shape of the data that describes an MoE family: which tensor is what, how it routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from moeify.checkpoint.header import StoredTensor
from moeify.families.numbering import Numbering
from moeify.families.values import Config, Dims, Shape, first_positive, text_config, ties_embeddings

_NEURON_SYMBOLS = ("F", "2F", "U", "2U")
DECODER_HEADS = ("lm_head.weight", "score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias")


@dataclass(frozen=True, kw_only=True)
class ExpertTensor:
    """A tensor of the experts, relative to its layer.

    ``name`` holds ``{expert}`` when each expert has a tensor of its own; otherwise one tensor
    stacks all experts along axis 0. ``shape`` is that of one expert; ``F`` and ``2F``, of shared slices
    ``U`` and ``2U``, mark the axis of its neurons. ``roles`` lists what is joined along that axis, one after the
    other, or neuron by neuron where ``interleaved``. A ``flat`` one has the experts' rows one below the other.
    Where there is ``only_if``, config.json has to pass it for the class to have the tensor.
    """

    name: str
    roles: tuple[str, ...]
    shape: Shape
    interleaved: bool = False
    flat: bool = False
    only_if: Callable[[Config], bool] | None = None

    @property
    def fused(self) -> bool:
        """Whether one tensor holds all experts."""
        return "{expert}" not in self.name

    @property
    def single(self) -> Shape:
        """The shape of each role's part."""
        return tuple("F" if size == "2F" else size for size in self.shape)

    @property
    def neuron_axis(self) -> int | None:
        """The axis of ``shape`` that counts neurons; None for a bias of the output."""
        return next((i for i, size in enumerate(self.shape) if size in _NEURON_SYMBOLS), None)


@dataclass(frozen=True, kw_only=True)
class ExtraTensor:
    """A tensor that the MoE class demands and the dense model lacks.

    Values are drawn from N(mean, std^2), so that without ``std`` all are ``mean``; with a ``role``
    they are the dense FFN's tensor of that role times ``weight``. In ``shape``, E counts experts.
    ``dtype`` is its own, where it is not the FFN's. As long as all values of one that ``silences``
    are zero, what it belongs to adds nothing, and a dense class can do without. Where there is ``only_if``, the
    mixture's config.json has to pass it for the class to have the tensor.
    """

    name: str
    shape: Shape
    mean: float = 0.0
    std: float = 0.0
    role: str | None = None
    weight: float = 1.0
    dtype: str | None = None
    silences: bool = False
    only_if: Callable[[Config], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """How a family turns router logits into experts and weights.

    Scores are a softmax or a sigmoid of the logits. ``selection_bias`` (relative to the layer,
    experts along ``selection_bias_axis``) is added to the scores for choosing, not for weighting;
    ``selection_bias_trained`` says whether transformers counts it as a parameter. Where the config
    has ``groups`` (number, kept), a token first keeps the groups whose ``group_best`` best scores are
    largest.
    Weights of the chosen are scores, divided by their sum where ``norm_key`` says so
    (``norm_default`` where the config is silent or ``norm_key`` is None) and multiplied by
    ``scaling_key``. They multiply what experts give, or what experts read where
    ``weighs_inputs``. ``route_by_key`` says whether routers decide for tokens or whole sequences,
    where a class can do both, ``slices_key`` how many slices experts are divided into, each with a softmax and
    best experts of its own, ``nulls_key`` how many null experts a token may choose behind its first, and
    ``shared_key`` how many further slices all tokens visit. Where slices are ``tied``, those of a copy are one of the
    ``groups`` and have the same router row, so that a token visits whole copies. ``straight_through`` says
    that a single renormalised weight, which is 1, has a gradient all the same.
    """

    scores: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    norm_key: str | None = None
    norm_default: bool = True
    selection_bias: str | None = None
    selection_bias_axis: int = 0
    selection_bias_trained: bool = False
    groups: tuple[str, str] | None = None
    group_best: int = 2
    scaling_key: str | None = None
    scaling_default: float = 1.0
    route_by_key: str | None = None
    slices_key: str | None = None
    nulls_key: str | None = None
    shared_key: str | None = None
    tied_slices: bool = False
    weighs_inputs: bool = False
    straight_through: bool = False

    def renormalises(self, config: Config) -> bool:
        """Whether the weights of the chosen experts are divided by their sum."""
        value = None if self.norm_key is None else text_config(config).get(self.norm_key)
        return self.norm_default if value is None else bool(value)

    def learns_from_outputs(self, config: Config, top_k: int) -> bool:
        """Whether what the model gives depends on router logits in a way that has a gradient.

        A single expert's weight divided by itself has none: only balance and z-loss reach routers. So it is with
        a single copy in tied slices, whose weights stay equal.
        """
        copies = top_k // self.slices(config) if self.tied_slices else top_k
        return copies > 1 or self.straight_through or not self.renormalises(config)

    def scaling(self, config: Config) -> float:
        """What the weights of the chosen experts are multiplied by."""
        value = None if self.scaling_key is None else text_config(config).get(self.scaling_key)
        return self.scaling_default if value is None else float(value)

    def route_by(self, config: Config) -> str:
        """What a router decides for, token or sequence."""
        value = None if self.route_by_key is None else config.get(self.route_by_key)
        return "token" if value is None else str(value)

    def slices(self, config: Config) -> int:
        """Slices that experts are divided into, as many in each; 1 where experts are whole networks."""
        value = None if self.slices_key is None else config.get(self.slices_key)
        return 1 if value is None else int(value)

    def numbering(self, slices: int, num_experts: int) -> Numbering:
        """Which of so many experts is which copy of which slice."""
        routers, tied = (1, slices) if self.tied_slices else (slices, 1)
        return Numbering(copies=num_experts // slices, routers=routers, tied=tied)

    def counts(self, num_experts: int, top_k: int, slices: int) -> dict[str, int]:
        """What config.json says of ``groups`` where so many experts lie in tied ``slices``: each copy is one."""
        if self.groups is None or not self.tied_slices or slices == 1:
            return {}
        return dict(zip(self.groups, (num_experts // slices, top_k // slices), strict=True))

    def null_experts(self, config: Config) -> int:
        """Null experts that a token may choose in place of all its experts but the first."""
        value = None if self.nulls_key is None else config.get(self.nulls_key)
        return 0 if value is None else int(value)

    def shared_slices(self, config: Config) -> int:
        """Slices beside those of experts, which every token visits."""
        value = None if self.shared_key is None else config.get(self.shared_key)
        return 0 if value is None else int(value)

    def group_counts(self, config: Config) -> tuple[int, int] | None:
        """Number of groups and how many a token keeps; None where there is one group."""
        if self.groups is None:
            return None
        total, kept = (text_config(config).get(key) or 1 for key in self.groups)
        return None if total == 1 else (int(total), int(kept))


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The tensors of an MoE family that are neither routers nor experts.

    ``outer`` names are relative to the base model; ``per_layer``, ``ffn`` (of layers that are no
    mixture) and ``shared`` (experts that every token visits) to a layer; ``heads`` are endings of
    full names, of which ``tied`` share their values with outer tensors or other heads where
    ``tie_word_embeddings`` says so. ``towers`` lead the tensors of other modalities, ``ignored``
    those that transformers' class leaves out on purpose; ``buffers`` are endings of tensors that
    are recomputed. ``lacks`` are endings of tensors that a class, by the end of its name, is built
    without, although its checkpoint may hold them for another. ``optional`` are outer tensors that some configs
    do without, ``varying`` those of a layer that not every layer has.
    """

    per_layer: tuple[str, ...]
    outer: tuple[str, ...] = ("embed_tokens.weight", "norm.weight")
    ffn: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    heads: tuple[str, ...] = DECODER_HEADS
    tied: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "embed_tokens.weight"})
    ties_by_default: bool = False
    towers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    varying: frozenset[str] = frozenset()

    def lacking(self, config: Config) -> tuple[str, ...]:
        """Endings of the tensors that the class named in ``architectures`` does not load."""
        named = config.get("architectures")
        name = str(named[0]) if isinstance(named, list) and named else ""
        ends = [end for end in self.lacks if name.endswith(end)]
        return self.lacks[max(ends, key=len)] if ends else ()

    def ties(self, config: Config) -> bool:
        """Whether the output embeddings are the input embeddings."""
        return ties_embeddings(config, self.ties_by_default)


@dataclass(frozen=True, kw_only=True)
class MoeLayout:
    """Tensor names of an MoE family, relative to the base model, and where its config says what.

    What has a default is called as in Llama and in most mixtures that came after it.
    ``class_prefix`` is the class's name without its head.
    ``guard`` is the dense class's name for a tensor of a layer that holds experts: one element of
    that name, in the first such layer, makes the dense class refuse the mixture by its shape, and
    is no parameter.
    ``norm`` and ``norm_bias`` are the normalisation whose output the router reads, None where it
    reads the residual stream itself; ``norm_offset`` is what it adds to its weight. The router's
    weight is [E, H] and its bias [E] in every family. ``router_module`` is the router's path
    within its layer once transformers has loaded it, where that is not its tensor's name, and
    ``loaded_selection_bias`` is the same for the bias of the rule; ``chooser`` is the path of the
    module that gives logits, weights and experts, where that is not the router. ``rule_by`` gives
    the rule where it depends on the config. ``loads_as`` is the model type whose classes of
    transformers load the checkpoint, where they do not know its own. ``former_num_experts_key`` is the one that
    transformers 4 reads and 5 does not write. ``kinds`` tells layers apart
    that hold different tensors under the same names of modules. ``scales`` are further tensors [E] of a
    router; ``own_inputs`` says that experts read something else than the router.
    ``unloadable`` says why transformers cannot load it. An ``encoder`` sees every token
    of a text at once, unless config.json says ``is_decoder``. ``unsharded`` says why FSDP cannot
    hold the class in shards, ``turned_when_loaded`` that transformers exchanges the axes of experts.
    ``gives`` counts what a layer's module returns, hidden states first, and is 0 where it returns
    them by themselves. ``joined`` are tensors that the class has in one, as in ``DenseLayout``. ``shared`` are
    those of slices that every token visits, U neurons wide, where config.json has any. ``null_experts`` are what
    null experts have, first the rows [Z, H] of a router that choose them.
    """

    model_type: str
    class_prefix: str
    experts: tuple[ExpertTensor, ...]
    dims: Callable[[Config], Dims]
    moe_layers: Callable[[Config], tuple[int, ...]]
    rest: Rest
    prefixes: tuple[str, ...] = ("model.",)
    layer: str = "layers.{layer}."
    router: str = "mlp.gate.weight"
    norm: str | None = "post_attention_layernorm.weight"
    norm_bias: str | None = None
    norm_offset: float = 0.0
    router_bias: str | None = None
    rule: RouterRule = RouterRule()
    rule_by: Callable[[Config], RouterRule] | None = None
    top_k_keys: tuple[str, ...] = ("num_experts_per_tok",)
    num_experts_keys: tuple[str, ...] = ("num_experts",)
    former_num_experts_key: str | None = None
    shared_keys: tuple[str, ...] = ()
    shared: tuple[ExpertTensor, ...] = ()
    null_experts: tuple[ExtraTensor, ...] = ()
    router_module: str | None = None
    guard: str | None = None
    loaded_selection_bias: str | None = None
    loads_as: str | None = None
    kinds: Callable[[Config], Sequence[str]] | None = None
    scales: tuple[str, ...] = ()
    own_inputs: bool = False
    unloadable: str | None = None
    chooser: str | None = None
    encoder: bool = False
    gives: int = 0
    unsharded: str | None = None
    turned_when_loaded: bool = False
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def loaded_router(self) -> str:
        """The router's path within its layer once transformers has loaded it."""
        return self.router_module or self.router.removesuffix(".weight")

    @property
    def loaded_experts(self) -> str:
        """The same for the experts, which lie beside what chooses."""
        block = (self.chooser or self.loaded_router).rpartition(".")[0]
        return f"{block}.experts" if block else "experts"

    def of(self, config: Config) -> MoeLayout:
        """The layout with the rule that ``config`` chooses, and the experts' tensors that it has."""
        text = text_config(config)
        experts, shared = (
            tuple(spec for spec in specs if spec.only_if is None or spec.only_if(text))
            for specs in (self.experts, self.shared)
        )
        nulls = tuple(spec for spec in self.null_experts if spec.only_if is None or spec.only_if(text))
        same = (experts, shared, nulls) == (self.experts, self.shared, self.null_experts)
        if self.rule_by is None and same:
            return self
        rule = self.rule if self.rule_by is None else self.rule_by(text)
        lacking = {spec.name for spec in self.shared} - {spec.name for spec in shared}
        rest = replace(self.rest, shared=tuple(name for name in self.rest.shared if name not in lacking))
        return replace(self, rule=rule, rule_by=None, experts=experts, shared=shared, null_experts=nulls, rest=rest)

    @property
    def null_router(self) -> str | None:
        """Name of the rows [Z, H] that choose null experts; None without any."""
        return self.null_experts[0].name if self.null_experts else None

    @property
    def router_biases(self) -> tuple[str, ...]:
        """Names of what a router adds, to its logits or for choosing, relative to the layer."""
        return tuple(name for name in (self.router_bias, self.rule.selection_bias) if name is not None)

    def is_guard(self, stored: StoredTensor) -> bool:
        """Whether a tensor only keeps dense classes from loading the mixture."""
        return self.guard is not None and stored.elements == 1 and stored.name.endswith(f".{self.guard}")

    def is_square(self, config: Config) -> bool:
        """Whether a matrix of the experts has the same shape when it is turned round."""
        dims = self.dims(config)
        return dims["H"] in (dims["F"], 2 * dims["F"])

    def sizes(self, config: Config) -> Dims:
        """``dims``, and E for the number of experts."""
        return self.dims(config) | {"E": self.num_experts(config)}

    def num_experts(self, config: Config) -> int:
        """Number of experts of each MoE layer."""
        return first_positive(text_config(config), self.num_experts_keys)

    def recount(self, sizes: Config, num_experts: int) -> None:
        """Let the part of config.json that counts experts say another number, to every version of transformers."""
        keys = [key for key in self.num_experts_keys if sizes.get(key) is not None]
        former = [self.former_num_experts_key] if keys and self.former_num_experts_key else []
        sizes |= dict.fromkeys((*keys, *former), num_experts)

    def top_k(self, config: Config) -> int:
        """Number of experts that each token visits."""
        return first_positive(text_config(config), self.top_k_keys)
