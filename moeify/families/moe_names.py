"""Names that many MoE families share, so that a family's file holds only what is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moeify.families.moe_layout import ExpertTensor, MoeLayout, RouterRule
from moeify.families.numbering import SHARED_KEY, SLICES_KEY
from moeify.families.values import Config, Dims, Shape, positive, text_config

LLAMA_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
ATTENTION = tuple(f"self_attn.{part}_proj.weight" for part in "qkvo")
ATTENTION_BIASES = tuple(f"self_attn.{part}_proj.bias" for part in "qkvo")
LLAMA_LAYER = (*LLAMA_NORMS, *ATTENTION)
LLAMA_BIASED = (*LLAMA_LAYER, *ATTENTION_BIASES)
QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
LINEAR_ATTENTION = (
    *LLAMA_BIASED,
    *QK_NORMS,
    *(f"linear_attn.{name}" for name in ("A_log", "dt_bias", "conv1d.weight", "norm.weight", "out_proj.weight")),
)
"""What Qwen3-Next's and Qwen3.5's layers hold of both kinds of attention."""
LATENT_ATTENTION = tuple(
    f"self_attn.{part}"
    for part in (
        "q_proj.weight",
        "q_a_proj.weight",
        "q_a_proj.bias",
        "q_a_layernorm.weight",
        "q_b_proj.weight",
        "kv_a_proj_with_mqa.weight",
        "kv_a_proj_with_mqa.bias",
        "kv_a_layernorm.weight",
        "kv_b_proj.weight",
        "o_proj.weight",
        "o_proj.bias",
    )
)
"""Keys and values made of a narrow state, as in DeepSeek-V2 and after."""
LOCAL_KEYS = ("num_local_experts", "num_experts")
ROUTED_KEYS = ("n_routed_experts", "num_local_experts", "num_experts")
GROUPED = RouterRule(
    scores="sigmoid",
    norm_key="norm_topk_prob",
    selection_bias="mlp.gate.e_score_correction_bias",
    groups=("n_group", "topk_group"),
    scaling_key="routed_scaling_factor",
)
"""DeepSeek-V3's rule."""
TIED = replace(GROUPED, slices_key=SLICES_KEY, shared_key=SHARED_KEY, tied_slices=True)
"""The same where a group may be a copy of a network in slices, as `moeify upcycle --slices` writes it."""
_PROJECTIONS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_NUMBERED = {"gate": "w1", "up": "w3", "down": "w2"}


def gated(prefix: str, *, numbered: bool = False, biases: bool = False) -> tuple[str, ...]:
    """The three weights of a gated FFN, as ``gate_proj, up_proj, down_proj`` or ``w1, w3, w2``."""
    names = (_NUMBERED if numbered else _PROJECTIONS).values()
    kinds = ("weight", "bias") if biases else ("weight",)
    return tuple(f"{prefix}.{name}.{kind}" for name in names for kind in kinds)


FFN = gated("mlp")
SHARED_EXPERT = (*gated("mlp.shared_expert"), "mlp.shared_expert_gate.weight")


def mamba2(block: str) -> tuple[str, ...]:
    """What a layer of Mamba 2 holds."""
    linear = (f"{name}.{kind}" for name in ("conv1d", "in_proj", "out_proj") for kind in ("weight", "bias"))
    return tuple(f"{block}.{name}" for name in ("A_log", "D", "dt_bias", "norm.weight", *linear))


def single_experts(block: str, *, numbered: bool = False) -> tuple[ExpertTensor, ...]:
    """Gated experts with three tensors each, [F, H], [F, H] and [H, F]."""
    names = _NUMBERED if numbered else _PROJECTIONS
    return tuple(
        ExpertTensor(
            name=f"{block}.experts.{{expert}}.{name}.weight",
            roles=(role,),
            shape=("H", "F") if role == "down" else ("F", "H"),
        )
        for role, name in names.items()
    )


def shared_experts(block: str) -> tuple[ExpertTensor, ...]:
    """Gated experts that every token visits, as one network of U neurons."""
    return tuple(
        ExpertTensor(name=f"{block}.{name}.weight", roles=(role,), shape=("H", "U") if role == "down" else ("U", "H"))
        for role, name in _PROJECTIONS.items()
    )


def fused_experts(
    gate_up: str, down: str, *, transposed: bool = False, interleaved: bool = False, biases: bool = False
) -> tuple[ExpertTensor, ...]:
    """Gated experts stacked in two tensors, [E, 2F, H] and [E, H, F], or both transposed."""
    shapes: tuple[Shape, Shape] = (("2F", "H"), ("H", "F"))
    if transposed:
        shapes = (("H", "2F"), ("F", "H"))
    both = ("gate", "up")
    experts = [
        ExpertTensor(name=gate_up, roles=both, shape=shapes[0], interleaved=interleaved),
        ExpertTensor(name=down, roles=("down",), shape=shapes[1]),
    ]
    if biases:
        roles = ("gate_bias", "up_bias")
        experts += [
            ExpertTensor(name=f"{gate_up}_bias", roles=roles, shape=("2F",), interleaved=interleaved),
            ExpertTensor(name=f"{down}_bias", roles=("down_bias",), shape=("H",)),
        ]
    return tuple(experts)


def as_loaded(layout: MoeLayout) -> MoeLayout:
    """``layout`` under the names that transformers 5 loads it to: all experts in two tensors.

    ``save_pretrained(save_original_format=False)`` writes them.
    """
    as_it_is = layout.router_module is None and not layout.turned_when_loaded
    if as_it_is and all(spec.fused for spec in layout.experts):
        return layout
    experts = layout.loaded_experts
    gated = any("gate" in spec.roles for spec in layout.experts)
    plain = tuple(
        replace(spec, name=f"{experts}.{spec.name.rpartition('{expert}.')[2].removesuffix('.weight')}")
        for spec in layout.experts
    )
    bias = layout.loaded_selection_bias or layout.rule.selection_bias
    return replace(
        layout,
        router=f"{layout.loaded_router}.weight",
        experts=fused_experts(f"{experts}.gate_up_proj", f"{experts}.down_proj") if gated else plain,
        rule=replace(layout.rule, selection_bias=bias),
    )


def decoder_dims(width_key: str, layers: int, hidden: int, width: int, vocab: int) -> Callable[[Config], Dims]:
    """A function from config to L, H, F and V, with the family's defaults."""

    def dims(config: Config) -> Dims:
        config = text_config(config)
        return {
            "L": positive(config, "num_hidden_layers", layers),
            "H": positive(config, "hidden_size", hidden),
            "F": positive(config, width_key, width),
            "V": positive(config, "vocab_size", vocab),
        }

    return dims


def with_shared(dims: Callable[[Config], Dims], key: str, default: int) -> Callable[[Config], Dims]:
    """The same function, and U for all neurons of so many shared experts as ``key`` counts."""

    def wider(config: Config) -> Dims:
        found, count = dims(config), config.get(key)
        return {**found, "U": found["F"] * (default if count is None else int(count))}

    return wider


def all_layers(default: int) -> Callable[[Config], tuple[int, ...]]:
    """A function from config to MoE layers: every one."""
    return lambda config: tuple(range(positive(text_config(config), "num_hidden_layers", default)))


def late_layers(key: str, first: int, default: int) -> Callable[[Config], tuple[int, ...]]:
    """A function from config to MoE layers: those from number ``key`` on."""

    def layers(config: Config) -> tuple[int, ...]:
        config = text_config(config)
        start = config.get(key)
        start = first if type(start) is not int else start
        return tuple(range(max(start, 0), positive(config, "num_hidden_layers", default)))

    return layers


def sparse_layers(default: int, key: str, first: int) -> Callable[[Config], tuple[int, ...]]:
    """MoE layers that ``mlp_layer_types`` lists as sparse; without the list ``late_layers``."""
    late = late_layers(key, first, default)

    def layers(config: Config) -> tuple[int, ...]:
        kinds = text_config(config).get("mlp_layer_types")
        if not isinstance(kinds, list):
            return late(config)
        return tuple(number for number, kind in enumerate(kinds) if kind == "sparse")

    return layers


def stepped_layers(default: int) -> Callable[[Config], tuple[int, ...]]:
    """MoE layers of Qwen's classes: every ``decoder_sparse_step``-th, less ``mlp_only_layers``."""

    def layers(config: Config) -> tuple[int, ...]:
        config = text_config(config)
        step = positive(config, "decoder_sparse_step", 1)
        dense = config.get("mlp_only_layers") or []
        every = range(positive(config, "num_hidden_layers", default))
        return tuple(layer for layer in every if layer not in dense and (layer + 1) % step == 0)

    return layers
