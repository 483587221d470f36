"""What is wrong with a mixture, found from its headers and its config."""

from __future__ import annotations

from collections.abc import Iterator

from moeify.checkpoint.naming import some
from moeify.errors import MoeifyError
from moeify.families.mixture import Mixture
from moeify.families.mixture_places import MIXERS
from moeify.families.moe_layout import ExpertTensor
from moeify.families.problems import Problem, grouped, numbers
from moeify.families.quantization import stored_under
from moeify.families.values import EXPERT_KEYS, Config, resolve_shape, text_config

_PATTERNS_SHOWN = 12


def stated(mixture: Mixture) -> tuple[int, int | None, list[Problem]]:
    """Experts of a layer, how many of them a token visits, and what config.json leaves open.

    Where it does not say how many experts there are, all files together do.
    """
    count = max(map(mixture.found_experts, mixture.experts), default=0)
    top_k, problems = None, list[Problem]()
    if not mixture.moe_layers:
        return count, top_k, problems
    try:
        count = mixture.num_experts
    except MoeifyError as error:
        problems.append(Problem(kind="config", message=error.message))
    try:
        top_k = mixture.top_k
    except MoeifyError as error:
        problems.append(Problem(kind="config", message=error.message))
    return count, top_k, problems


def check_mixture(mixture: Mixture) -> Iterator[Problem]:
    """Every problem of a mixture that its headers and config.json show."""
    num_experts, top_k, problems = stated(mixture)
    yield from problems
    if mixture.moe_layers and not problems:
        try:
            _ = mixture.slices
        except MoeifyError as error:
            yield Problem(kind="config", message=error.message)
    yield from _config_problems(mixture.config, num_experts, top_k)
    yield from _layer_problems(mixture, num_experts)
    yield from _missing_rest(mixture)
    yield from unknown_tensors(mixture.unknown, mixture.layout.model_type)


def _config_problems(config: Config, num_experts: int, top_k: int | None) -> Iterator[Problem]:
    section = text_config(config)
    said = {key: section[key] for key in EXPERT_KEYS if section.get(key) is not None}
    if len(set(map(str, said.values()))) > 1:
        listing = ", ".join(f"{key} = {value!r}" for key, value in said.items())
        yield Problem(kind="config", message=f"config.json contradicts itself: {listing}; {num_experts} is used here")
    if top_k is not None and top_k > num_experts:
        yield Problem(kind="config", message=f"config.json sends a token to {top_k} experts of {num_experts}")


def _layer_problems(mixture: Mixture, num_experts: int) -> Iterator[Problem]:
    """Problems of routers and experts, equal ones of several layers as one."""
    found: dict[tuple[str, str], list[int]] = {}
    for layer in mixture.moe_layers:
        for check in (_count_problem, _missing_experts, _shape_problems):
            for key in check(mixture, layer, num_experts):
                found.setdefault(key, []).append(layer)
    for (kind, text), layers in found.items():
        yield Problem(kind=kind, message=f"{numbers(layers, 'layer')}: {text}")


Finding = tuple[str, str]


def _count_problem(mixture: Mixture, layer: int, num_experts: int) -> Iterator[Finding]:
    found = mixture.found_experts(layer)
    if layer >= mixture.num_layers:
        yield "config", f"config.json has only {mixture.num_layers} layers"
    elif not found:
        yield "missing_experts", "no experts in the files"
    elif found != num_experts:
        yield "expert_count", f"{found} experts in the files, config.json says {num_experts}"
    if layer < mixture.num_layers and not mixture.router_parts(layer):
        yield "missing_router", f"no router ({mixture.layout.router})"


def _missing_experts(mixture: Mixture, layer: int, num_experts: int) -> Iterator[Finding]:
    roles = mixture.experts.get(layer, {})
    if not roles:
        return
    for spec in mixture.layout.experts:
        held = {expert for expert in roles.get(spec.name, {}) if expert is not None}
        if spec.fused:
            if spec.name not in roles:
                yield "missing_experts", f"{spec.name} is missing"
            continue
        if missing := set(range(num_experts)) - held:
            yield ("missing_experts", f"{spec.name.format(expert='*')} is missing for {numbers(missing, 'expert')}")
        if beyond := {expert for expert in held if expert >= num_experts}:
            yield (
                "expert_count",
                f"{spec.name.format(expert='*')} exists for {numbers(beyond, 'expert')}, beyond"
                f" the {num_experts} of config.json",
            )


def _shape_problems(mixture: Mixture, layer: int, num_experts: int) -> Iterator[Finding]:
    dims = mixture.layout.dims(mixture.config)
    router = mixture.checkpoint.tensors.get(mixture.router_name(layer))
    if router is not None and router.shape != (num_experts, dims["H"]):
        yield ("shape", f"the router has shape {list(router.shape)}, config.json says {[num_experts, dims['H']]}")
    for name in mixture.layout.router_biases:
        bias = mixture.checkpoint.tensors.get(mixture.layer_prefix(layer) + name)
        if bias is not None and bias.elements != num_experts:
            yield "shape", f"{name} has shape {list(bias.shape)}, config.json says {num_experts} experts"
    for spec in mixture.layout.experts:
        yield from _expert_shapes(mixture, layer, spec, num_experts, resolve_shape(spec.shape, dims))
    beside = {spec.name: resolve_shape(spec.shape, dims) for spec in mixture.layout.null_experts}
    shared = {spec.name: resolve_shape(spec.shape, dims) if dims["U"] else None for spec in mixture.layout.shared}
    for name, wanted in (beside | shared).items():
        full, tensors = mixture.layer_prefix(layer) + name, mixture.checkpoint.tensors
        shape = tensors[full].shape if full in tensors else None
        packed = shape is None and any(stored_under(tensors, full))
        if shape != wanted and not packed:
            yield "shape", f"{name} has shape {_listed(shape)}, config.json says {_listed(wanted)}"


def _listed(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _expert_shapes(
    mixture: Mixture, layer: int, spec: ExpertTensor, num_experts: int, one: tuple[int, ...]
) -> Iterator[Finding]:
    wrong: dict[tuple[int, ...], set[int]] = {}
    plain = spec.name.rpartition("{expert}")[2]
    for expert, stored in mixture.experts.get(layer, {}).get(spec.name, {}).items():
        if not stored.name.endswith(plain):
            continue  # packed
        shape = stored.shape
        if expert is None and shape[1:] != one:
            yield "shape", f"{spec.name} has shape {list(shape)}, not {[num_experts, *one]}"
        elif expert is not None and shape != one:
            wrong.setdefault(shape, set()).add(expert)
    for shape, experts in sorted(wrong.items()):
        yield (
            "shape",
            f"{spec.name.format(expert='*')} of {numbers(experts, 'expert')} has shape"
            f" {list(shape)}, config.json says {list(one)}",
        )


def _missing_rest(mixture: Mixture) -> Iterator[Problem]:
    """Tensors that layers of the same make have and some of them lack."""
    rest, layout = mixture.layout.rest, mixture.layout
    shared, dense = frozenset(rest.shared), frozenset(rest.ffn)
    lacking: dict[int, set[str]] = {}
    layers = range(mixture.num_layers)
    mixtures = frozenset(mixture.moe_layers)
    sparse = [[layer for layer in layers if layer in mixtures]]
    for names, alike in (
        (frozenset(rest.per_layer) - rest.varying, _by_mixer(mixture, layers)),
        (shared - dense, sparse),
        (frozenset(layout.router_biases), sparse),
        (dense, [[layer for layer in layers if layer not in mixtures]]),
    ):
        for group in alike:
            held = {layer: mixture.layers.get(layer, set()) & names for layer in group}
            expected = set[str]().union(*held.values()) | (names & {layout.norm or ""})
            for layer, present in held.items():
                if missing := expected - present:
                    lacking.setdefault(layer, set()).update(missing)
    same: dict[tuple[str, ...], list[int]] = {}
    for layer, missing in sorted(lacking.items()):
        same.setdefault(tuple(sorted(missing)), []).append(layer)
    for absent, where in same.items():
        yield Problem(kind="missing_tensor", message=f"{numbers(where, 'layer')}: {some(absent)} missing")
    yield from _missing_outer(mixture)


def _by_mixer(mixture: Mixture, layers: range) -> list[list[int]]:
    """Layers of one model may mix tokens in different ways; only like ones are compared."""
    groups: dict[tuple[str, frozenset[str]], list[int]] = {}
    kinds = mixture.layout.kinds(mixture.config) if mixture.layout.kinds else [""] * len(layers)
    for layer, kind in zip(layers, kinds, strict=False):
        roots = {name.split(".")[0] for name in mixture.layers.get(layer, set())}
        groups.setdefault((kind, frozenset(roots & MIXERS)), []).append(layer)
    return list(groups.values())


def _missing_outer(mixture: Mixture) -> Iterator[Problem]:
    rest = mixture.layout.rest
    wanted = {name for name in rest.outer if not name.startswith("pooler.")}
    if rest.ties(mixture.config):  # classes read the one of the two that is there
        ends = (end for end in rest.tied if any(name.endswith(end) for name in mixture.heads))
        wanted -= {rest.tied[end] for end in ends}
    if missing := wanted - mixture.outer - rest.optional:
        yield Problem(kind="missing_tensor", message=f"{some(missing)} missing")
    named = mixture.config.get("architectures") or [""]
    causal = str(named[0]).endswith(("ForCausalLM", "ForConditionalGeneration"))
    if causal and not rest.ties(mixture.config) and not mixture.heads:
        yield Problem(kind="missing_tensor", message="lm_head.weight is missing, and tie_word_embeddings is not set")


def unknown_tensors(names: list[str], model_type: str) -> Iterator[Problem]:
    """Tensors that no class of this model type loads, by pattern."""
    patterns = grouped(names)
    for pattern, count in list(patterns.items())[:_PATTERNS_SHOWN]:
        listing = f"{count} tensors" if count > 1 else "tensor"
        yield Problem(
            kind="unknown_tensor",
            message=f"{listing} {pattern}: no {model_type} class loads " + ("them" if count > 1 else "it"),
        )
    if len(patterns) > _PATTERNS_SHOWN:
        yield Problem(
            kind="unknown_tensor",
            message=f"{len(patterns) - _PATTERNS_SHOWN} more kinds of tensors that no {model_type} class loads",
        )
