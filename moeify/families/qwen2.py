"""Qwen2 and Qwen2-MoE, whose classes transformers and other engines bring along."""

from __future__ import annotations

from collections.abc import Mapping

from moeify.errors import CheckpointError
from moeify.families.base import (
    Config,
    DenseLayout,
    ExpertTensor,
    ExtraTensor,
    Family,
    FfnTensor,
    Head,
    MoeLayout,
    MoeSettings,
    RouterRule,
    num_labels,
    positive,
    rest_of,
)
from moeify.families.rope import canonical_rope, spelled_rope

__all__ = ["GATED_EXPERTS", "GATED_FFN", "OUTER", "QWEN2", "gated_moe_config", "stepped_moe_layers"]

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""What Qwen2Config and Qwen3Config assume where config.json is silent; the MoE classes differ."""


def decoder_dims(config: Config, head_dim: int | None = None) -> dict[str, int]:
    """Symbols of a grouped-query decoder: A query width, K key and value width, D head width."""
    config = {**DEFAULTS, **config}
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    size = positive(config, "head_dim", head_dim or hidden // heads)
    return {
        "L": positive(config, "num_hidden_layers"),
        "H": hidden,
        "F": positive(config, "intermediate_size"),
        "V": positive(config, "vocab_size", 151936),
        "A": heads * size,
        "K": positive(config, "num_key_value_heads", heads) * size,
        "D": size,
        "C": num_labels(config),
    }


def _moe_dims(config: Config) -> dict[str, int]:
    shared = config.get("shared_expert_intermediate_size", 5632)
    if type(shared) is not int or shared < 0:
        shared = positive(config, "shared_expert_intermediate_size")
    return {
        **decoder_dims(config),
        "F": positive(config, "moe_intermediate_size", 1408),
        "S": shared,
    }


def stepped_moe_layers(config: Config) -> tuple[int, ...]:
    """MoE layers of Qwen's classes: every ``decoder_sparse_step``-th, less ``mlp_only_layers``."""
    step = positive(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    layers = range(positive({**DEFAULTS, **config}, "num_hidden_layers"))
    return tuple(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)


def gated_moe_config(config: Config, settings: MoeSettings) -> Config:
    """The keys that Qwen2-MoE and Qwen3-MoE share."""
    config = spelled_rope({**DEFAULTS, **config})
    return {
        **config,
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "moe_intermediate_size": settings.width or config["intermediate_size"],
        "norm_topk_prob": settings.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": settings.dense_layers,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def gated_dense_config(config: Config, dense_layers: bool) -> Config:
    """The dense config inside that of Qwen's MoE classes.

    Raises ``CheckpointError`` where ``dense_layers`` have another width than the experts.
    """
    width = positive(config, "moe_intermediate_size")
    if dense_layers and config.get("intermediate_size") != width:
        raise CheckpointError(
            f"the experts are {width} wide and the dense layers {config.get('intermediate_size')}:"
            " no dense class has two widths",
            "only mixtures whose experts are as wide as the dense layers become dense",
        )
    dense = {key: value for key, value in config.items() if key not in _MOE_KEYS}
    return {**spelled_rope(dense), "intermediate_size": width}


_MOE_KEYS = (
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
    "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "output_router_logits",
    "router_aux_loss_coef", "shared_expert_intermediate_size", "qkv_bias",
    "experts_implementation",
)  # fmt: skip


def layer_types(config: Config) -> list[str]:
    """Which layers use sliding-window attention, by the dense classes' rule."""
    config = {**DEFAULTS, **config}
    if isinstance(config.get("layer_types"), list):
        return list(config["layer_types"])
    sliding = bool(config.get("use_sliding_window")) and config["sliding_window"] is not None
    return [
        "sliding_attention" if sliding and i >= config["max_window_layers"] else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]


def _to_moe_config(config: Config, settings: MoeSettings) -> Config:
    result = {
        **gated_moe_config(config, settings),
        "layer_types": layer_types(config),
        "qkv_bias": True,
        "shared_expert_intermediate_size": 0,
    }
    if not settings.renormalise:
        # llama.cpp and mlx-lm demand a shared expert and an lm_head of its own.
        result["shared_expert_intermediate_size"] = SILENT_EXPERT_WIDTH
        result["tie_word_embeddings"] = False
    return result


def _to_dense_config(config: Config) -> Config:
    shared = config.get("shared_expert_intermediate_size", 5632)
    if shared != 0 or config.get("qkv_bias") is False:
        what = f"a shared expert of width {shared}" if shared != 0 else "no biases in its attention"
        raise CheckpointError(
            f"this Qwen2-MoE has {what}, which the dense Qwen2 class cannot express",
            "only a mixture that was upcycled from a Qwen2 becomes one again",
        )
    layers = positive(config, "num_hidden_layers")
    return gated_dense_config(config, len(stepped_moe_layers(config)) < layers)


SILENT_EXPERT_WIDTH = 256
"""Width of a shared expert of zeros: the smallest that llama.cpp's quantisations divide."""

OUTER: Mapping[str, tuple[str, ...]] = {
    "embed_tokens.weight": ("V", "H"),
    "norm.weight": ("H",),
}
PER_LAYER: Mapping[str, tuple[str, ...]] = {
    "input_layernorm.weight": ("H",),
    "post_attention_layernorm.weight": ("H",),
    "self_attn.q_proj.weight": ("A", "H"),
    "self_attn.k_proj.weight": ("K", "H"),
    "self_attn.v_proj.weight": ("K", "H"),
    "self_attn.o_proj.weight": ("H", "A"),
    "self_attn.q_proj.bias": ("A",),
    "self_attn.k_proj.bias": ("K",),
    "self_attn.v_proj.bias": ("K",),
}
GATED_FFN = (
    FfnTensor(role="gate", name="mlp.gate_proj.weight", shape=("F", "H")),
    FfnTensor(role="up", name="mlp.up_proj.weight", shape=("F", "H")),
    FfnTensor(role="down", name="mlp.down_proj.weight", shape=("H", "F")),
)
GATED_EXPERTS = tuple(
    ExpertTensor(
        name=part.name.replace("mlp.", "mlp.experts.{expert}."),
        roles=(part.role,),
        shape=part.shape,
    )
    for part in GATED_FFN
)
SHARED_EXPERT = (
    *(f"mlp.shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")),
    "mlp.shared_expert_gate.weight",
)
TOP_K_SOFTMAX = RouterRule(norm_key="norm_topk_prob", norm_default=False)
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def decoder_heads(qa_moe_prefix: str) -> dict[str, Head]:
    """The heads of Qwen's classes; question answering keeps an old prefix in some of them."""
    score = {"score.weight": ("C", "H")}
    return {
        "Model": Head(),
        "ForCausalLM": Head(prefix="model.", tensors={"lm_head.weight": ("V", "H")}, tied=TIED),
        "ForSequenceClassification": Head(prefix="model.", tensors=score),
        "ForTokenClassification": Head(prefix="model.", tensors=score | {"score.bias": ("C",)}),
        "ForQuestionAnswering": Head(
            prefix="transformer.",
            moe_prefix=qa_moe_prefix,
            tensors={"qa_outputs.weight": (2, "H"), "qa_outputs.bias": (2,)},
        ),
    }


RENORMALISATION_NOTE = (
    "llama.cpp and mlx-lm do not load this form of Qwen2-MoE, and would not renormalise the weights"
    " of the chosen experts: for them, upcycle with --compat gguf. transformers honours"
    " norm_topk_prob."
)

_DENSE = DenseLayout(
    prefixes=("model.", "transformer."),
    layer="layers.{layer}.",
    outer=OUTER,
    per_layer=PER_LAYER,
    ffn=GATED_FFN,
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    heads=decoder_heads(qa_moe_prefix="model."),
    dims=decoder_dims,
    canonical=canonical_rope,
    ties_by_default=False,
    buffers=(".rotary_emb.inv_freq",),
)

QWEN2 = Family(
    model_type="qwen2",
    class_prefixes=("Qwen2", "Qwen2Moe"),
    to_moe_config=_to_moe_config,
    to_dense_config=_to_dense_config,
    gguf_renormalises=False,
    notes=(RENORMALISATION_NOTE,),
    dense=_DENSE,
    moe=MoeLayout(
        model_type="qwen2_moe",
        prefixes=("model.", "transformer."),
        layer="layers.{layer}.",
        router="mlp.gate.weight",
        experts=GATED_EXPERTS,
        norm="post_attention_layernorm.weight",
        norm_bias=None,
        dims=_moe_dims,
        moe_layers=stepped_moe_layers,
        rest=rest_of(_DENSE, SHARED_EXPERT),
        rule=TOP_K_SOFTMAX,
        extras=(
            ExtraTensor(name="mlp.shared_expert.gate_proj.weight", shape=("S", "H")),
            ExtraTensor(name="mlp.shared_expert.up_proj.weight", shape=("S", "H")),
            ExtraTensor(name="mlp.shared_expert.down_proj.weight", shape=("H", "S")),
            # Its product with an empty expert is zero, but an exactly zero gate gives NaN in
            # llama.cpp.
            ExtraTensor(name="mlp.shared_expert_gate.weight", shape=(1, "H"), std=0.02),
        ),
    ),
)
