"""Mixtral, PhiMoE, OLMoE, GraniteMoE, GPT-OSS, ERNIE-4.5-MoE, Jamba and Llama 4."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    DECODER_HEADS,
    DECODER_OUTER,
    LLAMA_NORMS,
    QK_NORMS,
    all_layers,
    decoder_dims,
    fused_experts,
    gated,
    single_experts,
)
from moeify.families.values import Config, positive, text_config

__all__ = ["ERNIE4_5_MOE", "GPT_OSS", "GRANITEMOE", "JAMBA", "LLAMA4", "MIXTRAL", "OLMOE", "PHIMOE"]

_LOCAL_KEYS = ("num_local_experts", "num_experts")

MIXTRAL = MoeLayout(
    model_type="mixtral",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=single_experts("block_sparse_moe", numbered=True),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=14336, vocabulary=32000),
    moe_layers=all_layers(32),
    num_experts_keys=_LOCAL_KEYS,
    rest=Rest(outer=DECODER_OUTER, per_layer=(*LLAMA_NORMS, *ATTENTION), heads=DECODER_HEADS),
)

PHIMOE = MoeLayout(
    model_type="phimoe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.router",
    experts=single_experts("block_sparse_moe", numbered=True),
    norm="post_attention_layernorm.weight",
    norm_bias="post_attention_layernorm.bias",
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=6400, vocabulary=32064),
    moe_layers=all_layers(32),
    num_experts_keys=_LOCAL_KEYS,
    rule=RouterRule(scores="sparsemixer", norm_default=False),
    rest=Rest(
        outer=(*DECODER_OUTER, "norm.bias"),
        per_layer=(
            *LLAMA_NORMS, *(name.replace(".weight", ".bias") for name in LLAMA_NORMS),
            *ATTENTION, *ATTENTION_BIASES,
        ),
        heads=(*DECODER_HEADS, "lm_head.bias"),
    ),
)  # fmt: skip

OLMOE = MoeLayout(
    model_type="olmoe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=single_experts("mlp"),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=16, hidden=2048, width=2048, vocabulary=50304),
    moe_layers=all_layers(16),
    num_experts_keys=("num_experts", "num_local_experts"),
    rule=RouterRule(norm_key="norm_topk_prob", norm_default=False),
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, *QK_NORMS),
        heads=DECODER_HEADS,
    ),
)

GRANITEMOE = MoeLayout(
    model_type="granitemoe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="block_sparse_moe.router.layer.weight",
    router_module="block_sparse_moe.router",
    experts=fused_experts(
        "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
    ),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=11008, vocabulary=32000),
    moe_layers=all_layers(32),
    num_experts_keys=_LOCAL_KEYS,
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES),
        heads=DECODER_HEADS,
    ),
)

GPT_OSS = MoeLayout(
    model_type="gpt_oss",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.router.weight",
    router_bias="mlp.router.bias",
    experts=fused_experts(
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
        transposed=True, interleaved=True, biases=True,
    ),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=36, hidden=2880, width=2880, vocabulary=201088),
    moe_layers=all_layers(36),
    num_experts_keys=_LOCAL_KEYS,
    top_k_keys=("num_experts_per_tok", "experts_per_token"),
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, "self_attn.sinks"),
        heads=DECODER_HEADS,
    ),
)  # fmt: skip


def _ernie_layers(config: Config) -> tuple[int, ...]:
    total = positive(config, "num_hidden_layers", 28)
    step = positive(config, "moe_layer_interval", 1)
    first, last = config.get("moe_layer_start_index", 1), config.get("moe_layer_end_index", -1)
    last = total - 1 if last == -1 else last
    return tuple(i for i in range(total) if (i + 1) % step == 0 and first <= i <= last)


ERNIE4_5_MOE = MoeLayout(
    model_type="ernie4_5_moe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=single_experts("mlp"),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims(
        "moe_intermediate_size", layers=28, hidden=2560, width=1536, vocabulary=103424
    ),
    moe_layers=_ernie_layers,
    num_experts_keys=("moe_num_experts", "num_experts"),
    top_k_keys=("moe_k", "num_experts_per_tok"),
    shared_keys=("moe_num_shared_experts",),
    rule=RouterRule(
        selection_bias="mlp.moe_statics.e_score_correction_bias",
        selection_bias_axis=1,
        selection_bias_trained=True,
    ),
    loaded_selection_bias="mlp.gate.moe_statics.e_score_correction_bias",
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES),
        ffn=gated("mlp", biases=True),
        shared=gated("mlp.shared_experts", biases=True),
        heads=(*DECODER_HEADS, "lm_head.bias"),
        ties_by_default=True,
        ignored=("model.mtp_", "mtp"),
    ),
)


def _jamba_layers(config: Config) -> tuple[int, ...]:
    step = positive(config, "expert_layer_period", 2)
    offset = config.get("expert_layer_offset", 1)
    total = positive(config, "num_hidden_layers", 32)
    mixture = positive(config, "num_experts", 16) > 1
    return tuple(i for i in range(total) if mixture and i % step == offset)


JAMBA = MoeLayout(
    model_type="jamba",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="feed_forward.router.weight",
    experts=single_experts("feed_forward"),
    norm="pre_ff_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=14336, vocabulary=65536),
    moe_layers=_jamba_layers,
    num_experts_keys=("num_experts", "num_local_experts"),
    rule=RouterRule(norm_default=False),
    rest=Rest(
        outer=("embed_tokens.weight", "final_layernorm.weight"),
        per_layer=(
            "input_layernorm.weight", "pre_ff_layernorm.weight", *ATTENTION,
            "mamba.A_log", "mamba.D",
            *(f"mamba.{part}_layernorm.weight" for part in ("b", "c", "dt")),
            *(f"mamba.{part}.weight" for part in ("conv1d", "dt_proj", "in_proj", "out_proj",
                                                  "x_proj")),
            *(f"mamba.{part}.bias" for part in ("conv1d", "dt_proj", "in_proj", "out_proj")),
        ),
        ffn=gated("feed_forward"),
        heads=DECODER_HEADS,
    ),
)  # fmt: skip


def _llama4_layers(config: Config) -> tuple[int, ...]:
    config = text_config(config)
    listed = config.get("moe_layers")
    if isinstance(listed, list):
        return tuple(listed)
    step = positive(config, "interleave_moe_layer_step", 1)
    return tuple(range(step - 1, positive(config, "num_hidden_layers", 48), step))


LLAMA4 = MoeLayout(
    model_type="llama4",
    prefixes=("language_model.model.", "model."),
    layer="layers.{layer}.",
    router="feed_forward.router.weight",
    experts=fused_experts(
        "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", transposed=True
    ),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims("intermediate_size", layers=48, hidden=5120, width=8192, vocabulary=202048),
    moe_layers=_llama4_layers,
    num_experts_keys=_LOCAL_KEYS,
    rule=RouterRule(scores="sigmoid", norm_default=False, weighs_inputs=True),
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES),
        ffn=gated("feed_forward"),
        shared=gated("feed_forward.shared_expert"),
        heads=DECODER_HEADS,
        towers=("vision_model.", "multi_modal_projector."),
    ),
)
