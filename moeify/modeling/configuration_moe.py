"""The configurations of moeify's own MoE models: those of the dense types, and the keys that all of them share.

This file travels inside checkpoints: it imports transformers and its siblings only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import transformers

if not hasattr(transformers, "PreTrainedConfig"):
    raise ImportError(
        f"the code of this checkpoint needs transformers 5 or newer, and {transformers.__version__} is installed:"
        " pip install 'transformers>=5'"
    )

from .moe_families import FAMILIES, MoeFamily, family_of, moe_type


# `eq` and `repr` off: the generated methods would shadow those of the transformers configuration.
@dataclass(kw_only=True, eq=False, repr=False)
class MoeOptions:
    """Keys of `config.json` that say where the experts are and how tokens reach them."""

    num_experts: int = 8
    """E, the number of experts in every MoE layer."""

    num_experts_per_tok: int = 2
    """K, the number of experts that see each token (top-k), 1 <= K <= E."""

    expert_slices: int = 1
    """G, the number of slices that the feed-forward network's neurons are cut into, which divides E and K.

    Experts s E / G to (s + 1) E / G - 1 hold slice s. A token visits K / G experts of each slice, whose weights are
    those of the slice by itself.
    """

    shared_slices: int = 0
    """S, the number of further slices, which have no router: every token visits them. They are the last neurons."""

    moe_layers: list[int] | None = None
    """Layers, counted from 0, that hold experts; the others stay dense. None means all layers."""

    route_by: str = "token"
    """What a router decides for: each "token" by itself, or a "sequence" by its tokens' mean."""

    router_bias: bool = False
    """Whether a bias for each expert, without a gradient, has a part in choosing and none in weighing.

    Whoever trains moves it towards an even load (arXiv 2408.15664); it stays in float32.
    """

    null_experts: int = 0
    """Z, the number of null experts, which a token may choose in place of all its K experts but the first."""

    null_kinds: tuple[str, ...] | list[str] = ("zero",)
    """Kinds of the null experts, dealt out in turn: zero, copy (alpha x) and constant (v)."""

    norm_topk_prob: bool = True
    """Whether the K chosen weights are scaled to sum to 1, which makes copied experts exact."""

    router_aux_loss_coef: float = 0.01
    """What the balance loss is multiplied by before it is added to the task's loss."""

    router_z_loss_coef: float = 0.0
    """What the z-loss is multiplied by before it is added to the task's loss."""

    router_jitter_noise: float = 0.0
    """Epsilon: in training what routers read is multiplied by draws from [1 - epsilon, 1 + epsilon]; experts read it
    as it is (Switch, arXiv 2101.03961, section 2.4). In evaluation nothing is drawn."""

    output_router_logits: bool = False
    """Whether outputs carry `router_logits` and the losses of the router count in training."""

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number `layer`, counted from 0, holds experts."""
        return self.moe_layers is None or layer in self.moe_layers

    def nulls_of(self, kind: str) -> int:
        """How many null experts are of this kind."""
        rounds, more = divmod(self.null_experts, len(self.null_kinds))
        return rounds * self.null_kinds.count(kind) + self.null_kinds[:more].count(kind)

    def check_experts(self, num_layers: int) -> None:
        """Check the keys above against each other and against the number of layers.

        Raises:
            ValueError: naming the key, its value and the limit it breaks.
        """
        experts, top_k = self.num_experts, self.num_experts_per_tok
        if not isinstance(experts, int) or experts < 1:
            raise ValueError(f"num_experts must be a whole number of at least 1, not {experts!r}.")
        if not isinstance(top_k, int) or not 1 <= top_k <= experts:
            raise ValueError(f"num_experts_per_tok must lie between 1 and num_experts = {experts}, not {top_k!r}.")
        slices = self.expert_slices
        if not isinstance(slices, int) or slices < 1 or experts % slices or top_k % slices:
            raise ValueError(
                f"expert_slices must divide num_experts = {experts} and num_experts_per_tok = {top_k},"
                f" not be {slices!r}."
            )
        shared = self.shared_slices
        if not isinstance(shared, int) or shared < 0:
            raise ValueError(f"shared_slices must be a whole number of at least 0, not {shared!r}.")
        if self.route_by not in ("token", "sequence"):
            raise ValueError(f"route_by must be 'token' or 'sequence', not {self.route_by!r}.")
        if not isinstance(self.router_bias, bool):
            raise ValueError(f"router_bias must be true or false, not {self.router_bias!r}.")
        self._check_nulls()
        for key in ("router_aux_loss_coef", "router_z_loss_coef"):
            coefficient = getattr(self, key)
            if not isinstance(coefficient, int | float) or not coefficient >= 0:
                raise ValueError(f"{key} must be 0 or a positive number, not {coefficient!r}.")
        jitter = self.router_jitter_noise
        if not isinstance(jitter, int | float) or not 0 <= jitter < 1:
            raise ValueError(f"router_jitter_noise must be at least 0 and less than 1, not {jitter!r}.")
        layers = self.moe_layers or ()
        wrong = [n for n in layers if not isinstance(n, int) or not 0 <= n < num_layers]
        if wrong:
            raise ValueError(f"moe_layers names {wrong}, but the model's layers are 0 to {num_layers - 1}.")

    def _check_nulls(self) -> None:
        nulls, kinds = self.null_experts, self.null_kinds
        if not isinstance(nulls, int) or nulls < 0:
            raise ValueError(f"null_experts must be a whole number of at least 0, not {nulls!r}.")
        if not isinstance(kinds, tuple | list) or not kinds or not set(kinds) <= {"zero", "copy", "constant"}:
            raise ValueError(f"null_kinds must list 'zero', 'copy' or 'constant', not {kinds!r}.")
        if not nulls:
            return
        if self.num_experts_per_tok < 2:
            raise ValueError("null_experts need num_experts_per_tok of 2 or more: the first choice is an expert.")
        if self.expert_slices > 1 or not self.norm_topk_prob:
            raise ValueError("null_experts go with expert_slices = 1 and norm_topk_prob = true only.")


class CheckedOptions:
    """What the configuration of each type does beside its dense one's."""

    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "aux_loss", "router_logits"]
    _auto_class: ClassVar[str | None] = "AutoConfig"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.check_experts(self.num_hidden_layers)  # type: ignore[attr-defined]


class _Plan:
    """A plan by what a configuration says; no property, as transformers 5.19 assigns another to some."""

    def __init__(self, made: Callable[[Any], dict[str, str]]) -> None:
        self.made = made

    def __get__(self, config: Any, owner: Any = None) -> dict[str, str]:
        return self.made(config)


def _tensor_parallel_plan(family: MoeFamily, dense: dict[str, str], biased: bool) -> dict[str, str]:
    """The dense type's plan, and that of the experts."""
    ffn, layer = family.ffn, f"{family.layers}.*"
    plan = dense | {f"{layer}.{path}": how for path, how in family.tp_plan.items()}
    up, experts = "gate_up_proj" if ffn.gate else "up_proj", f"{layer}.{ffn.block}.experts"
    packed = "packed_" if ffn.gate else ""
    columns, rows = ("rowwise", "colwise") if ffn.is_transposed else ("colwise", "rowwise")
    biases = {f"{experts}.{up}_bias": f"{packed}rowwise"} if biased else {}
    return {
        **plan,
        f"{experts}.{up}": packed + columns,
        **biases,
        f"{experts}.down_proj": rows,
        experts: "moe_tp_experts",
    }


def _expert_parallel_plan(family: MoeFamily, biased: bool) -> dict[str, str]:
    """Whole experts on each rank."""
    experts = f"{family.layers}.*.{family.ffn.block}.experts"
    up = "gate_up_proj" if family.ffn.gate else "up_proj"
    weights = (up, "down_proj")
    tensors = (*weights, *(f"{name}_bias" for name in weights if biased))
    return {**{f"{experts}.{name}": "grouped_gemm" for name in tensors}, experts: "ep_dispatch_experts"}


def _made(dense_type: str, family: MoeFamily) -> type[transformers.PreTrainedConfig]:
    """All keys of the dense type's configuration, and those of `MoeOptions`."""
    dense = transformers.CONFIG_MAPPING[dense_type]
    name = f"{family.moe_prefix}Config"
    tp_plan = dense.base_model_tp_plan or {}

    def biased(config: Any) -> bool:
        return bool(getattr(config, "mlp_bias", family.ffn.biased))

    words: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"All keys of `{dense.__name__}`, and those of `MoeOptions`.",
        "model_type": moe_type(dense_type),
        "base_model_tp_plan": _Plan(lambda config: _tensor_parallel_plan(family, tp_plan, biased(config))),
        "base_model_ep_plan": _Plan(lambda config: _expert_parallel_plan(family, biased(config))),
    }
    if family.tokenizer is not None:
        # Without moeify installed, AutoTokenizer has no entry for this model_type and asks the config.
        words |= {"__annotations__": {"tokenizer_class": str | None}, "tokenizer_class": family.tokenizer}
    return type(name, (CheckedOptions, dense, MoeOptions), words)


def config_class(dense_type: str) -> type[transformers.PreTrainedConfig]:
    """The configuration class of a dense type's mixture, made when it is first asked for."""
    family = FAMILIES[dense_type]
    name = f"{family.moe_prefix}Config"
    if name not in globals():
        globals()[name] = _made(dense_type, family)
    return globals()[name]


def __getattr__(name: str) -> Any:
    found = family_of(name)
    if found is None or name != f"{found[1].moe_prefix}Config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return config_class(found[0])
