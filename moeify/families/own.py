"""Mixtures in moeify's own classes: the dense class of transformers, with experts where its FFN lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from moeify.errors import CheckpointError
from moeify.families.base import DenseLayout
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.engines import own_engines
from moeify.families.joining import whole_name
from moeify.families.moe_layout import ExpertTensor, ExtraTensor, MoeLayout, Rest, RouterRule
from moeify.families.numbering import SHARED_KEY as _SHARED
from moeify.families.numbering import SLICES_KEY as _SLICES
from moeify.families.rope import spelled_rope
from moeify.families.values import Config, Dims, Shape
from moeify.modeling.moe_families import FAMILIES, moe_type

_BIAS, _NULLS, _NULL_KINDS = "router_bias", "null_experts", "null_kinds"
OWN_RULE = RouterRule(
    norm_key="norm_topk_prob",
    route_by_key="route_by",
    slices_key=_SLICES,
    shared_key=_SHARED,
    nulls_key=_NULLS,
    straight_through=True,
)


def own_rule(block: str) -> Callable[[Config], RouterRule]:
    """How the routers of ``block``, relative to its layer, choose, by the mixture's config."""
    biased = replace(OWN_RULE, selection_bias=bias_name(block))
    return lambda config: biased if _biased(config) else OWN_RULE


def bias_name(block: str) -> str:
    """What is added for choosing, where config.json says so."""
    return f"{block + '.' if block else ''}routing.e_score_correction_bias"


def own_mixture(dense: DenseLayout) -> MoeLayout:
    """Where the experts lie that stand in for a dense type's FFN: under its module's own path."""
    family = FAMILIES[dense.model_type]
    shared_bias = any(name.endswith(".bias") for head in dense.heads.values() for name in head.tied)
    shared = tuple(_experts(dense, f"{family.ffn.block}.shared", "U"))
    return MoeLayout(
        model_type=moe_type(dense.model_type),
        class_prefix=family.moe_prefix,
        encoder=dense.encoder,
        gives=dense.gives,
        unsharded=f"accelerate cannot shard a {dense.class_prefix}, whose head has a bias under two names"
        if shared_bias
        else None,
        prefixes=dense.prefixes,
        layer=dense.layer,
        router=f"{family.ffn.block}.router.weight",
        guard=family.ffn.guard,
        experts=tuple(_experts(dense, f"{family.ffn.block}.experts")),
        norm=dense.norm,
        norm_bias=dense.norm_bias,
        norm_offset=dense.norm_offset,
        dims=lambda config: _dims(dense, config),
        moe_layers=lambda config: _moe_layers(dense, config),
        rest=replace(_rest(dense), shared=tuple(spec.name for spec in shared)),
        shared=shared,
        shared_keys=(_SHARED,),
        null_experts=_null_experts(family.ffn.block),
        rule=OWN_RULE,
        rule_by=own_rule(family.ffn.block),
        joined=dense.joined,
    )


def _rest(dense: DenseLayout) -> Rest:
    """The tensors of everything else, in one where the dense class has them in one."""
    rest = dense.rest()
    per_layer, ffn = (
        tuple(dict.fromkeys(whole_name(name, dense.joined) or name for name in names))
        for names in (rest.per_layer, rest.ffn)
    )
    return replace(rest, per_layer=per_layer, ffn=ffn)


def _experts(dense: DenseLayout, path: str, width: str = "F") -> Iterator[ExpertTensor]:
    """One tensor for all experts of each weight and bias, the gate's rows before those of ``up``."""
    shapes = {part.role: tuple(width if s == "F" else s for s in part.shape) for part in dense.ffn}
    needs = {part.role: dense.only_if.get(part.name) for part in dense.ffn}
    for first, end in (("up", ""), ("up", "_bias"), ("down", ""), ("down", "_bias")):
        role = first + end
        if role not in shapes:
            continue
        gate = f"gate{end}"
        if first == "up" and gate in shapes:
            shape: Shape = tuple(f"2{width}" if size == width else size for size in shapes[role])
            yield ExpertTensor(name=f"{path}.gate_up_proj{end}", roles=(gate, role), shape=shape, only_if=needs[role])
        else:
            yield ExpertTensor(
                name=f"{path}.{first}_proj{end}", roles=(role,), shape=shapes[role], only_if=needs[role]
            )


def _dims(dense: DenseLayout, config: Config) -> Dims:
    """The dense sizes, F being that of an expert, a slice of the FFN, and U that of the shared slices."""
    dims = dense.dims(config)
    shared = OWN_RULE.shared_slices(config)
    count = OWN_RULE.slices(config) + shared
    if count < 1 or shared < 0 or dims["F"] % count:
        raise CheckpointError(
            f"config.json cuts the {dims['F']} neurons of a feed-forward network into {count} slices"
            f" ({_SLICES}, {_SHARED}), which {count} does not divide",
            f"use a number that divides {dims['F']}",
        )
    size = dims["F"] // count
    nulls = {"Z": OWN_RULE.null_experts(config), "X": _nulls_of(config, "copy"), "Y": _nulls_of(config, "constant")}
    return {**dims, "F": size, "U": size * shared, **nulls}


def _nulls_of(config: Config, kind: str) -> int:
    """How many null experts are of this kind; kinds are dealt out in turn."""
    kinds = config.get(_NULL_KINDS) or ("zero",)
    rounds, more = divmod(OWN_RULE.null_experts(config), len(kinds))
    return rounds * kinds.count(kind) + kinds[:more].count(kind)


def _null_experts(block: str) -> tuple[ExtraTensor, ...]:
    """Their rows of the router, alpha and v of modeling's ``NullExperts``."""
    return (
        ExtraTensor(name=f"{block}.nulls.router.weight", shape=("Z", "H"), only_if=_has_nulls),
        ExtraTensor(name=f"{block}.nulls.scale", shape=("X",), silences=True, only_if=_has_copies),
        ExtraTensor(name=f"{block}.nulls.constant", shape=("Y", "H"), silences=True, only_if=_has_constants),
    )


def _has_nulls(config: Config) -> bool:
    return OWN_RULE.null_experts(config) > 0


def _has_copies(config: Config) -> bool:
    return _nulls_of(config, "copy") > 0


def _has_constants(config: Config) -> bool:
    return _nulls_of(config, "constant") > 0


def _moe_layers(dense: DenseLayout, config: Config) -> tuple[int, ...]:
    listed = config.get("moe_layers")
    return tuple(range(dense.num_layers(config)) if listed is None else listed)


def own_conversion(dense: DenseLayout, moe: MoeLayout, pooled: bool = False) -> Conversion:
    """To moeify's own class: the dense config plus the mixture's keys; ``pooled`` is as in ``own_engines``."""
    return Conversion(
        dense=dense,
        moe=moe,
        to_moe=_to_moe,
        to_dense=_to_dense,
        extras=_extras(dense),
        engines=own_engines(moe.model_type, pooled=pooled),
        remote_code=True,
    )


def _extras(dense: DenseLayout) -> tuple[ExtraTensor, ...]:
    block = FAMILIES[dense.model_type].ffn.block
    bias = ExtraTensor(name=bias_name(block), shape=("E",), dtype="F32", only_if=_biased)
    return bias, *_null_experts(block)[1:]  # the rows are drawn as routers are


def _biased(config: Config) -> bool:
    return bool(config.get(_BIAS))


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    return {
        **config,
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        **({_SLICES: settings.slices} if settings.slices > 1 else {}),
        **({_SHARED: settings.shared} if settings.shared else {}),
        "moe_layers": list(settings.moe_layers),
        "route_by": settings.route_by,
        **({_BIAS: True} if settings.router_bias else {}),
        **({_NULLS: settings.nulls, _NULL_KINDS: list(settings.null_kinds)} if settings.nulls else {}),
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }


def _to_dense(config: Config) -> Config:
    dense = {key: value for key, value in config.items() if key not in _KEYS}
    return spelled_rope(dense) if "rope_parameters" in dense else dense


_KEYS = (
    "num_experts",
    "num_experts_per_tok",
    _SLICES,
    _SHARED,
    "moe_layers",
    "route_by",
    _BIAS,
    _NULLS,
    _NULL_KINDS,
    "norm_topk_prob",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "router_jitter_noise",
    "experts_implementation",
)
