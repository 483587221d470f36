"""GPT-2 and GPT-2-MoE (``gpt2_moe``, whose classes are moeify's own)."""

from __future__ import annotations

from moeify.families.base import (
    Config,
    DenseLayout,
    ExpertTensor,
    Family,
    FfnTensor,
    Head,
    MoeLayout,
    RouterRule,
    Shape,
    listed_moe_layers,
    num_labels,
    own_dense_config,
    own_moe_config,
    positive,
    rest_of,
)

__all__ = ["GPT2"]


_SPELLINGS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _canonical(config: Config) -> Config:
    """``config`` with GPT-2's own names, which give way to the general ones as in GPT2Config."""
    general = {
        own: config[name] for name, own in _SPELLINGS.items() if config.get(name) is not None
    }
    return {key: value for key, value in config.items() if key not in _SPELLINGS} | general


def _dims(config: Config) -> dict[str, int]:
    config = _canonical(config)
    hidden = positive(config, "n_embd", 768)
    return {
        "L": positive(config, "n_layer", 12),
        "H": hidden,
        "3H": 3 * hidden,
        "F": positive(config, "n_inner", 4 * hidden),
        "V": positive(config, "vocab_size", 50257),
        "P": positive(config, "n_positions", 1024),
        "C": num_labels(config),
        # The class of two heads sees to one label.
        "S": 1 if config.get("summary_proj_to_labels", True) else hidden,
    }


_TIED = {"lm_head.weight": "transformer.wte.weight"}
_LM: dict[str, Shape] = {"lm_head.weight": ("V", "H")}
_SUMMARY: dict[str, Shape] = {
    "multiple_choice_head.summary.weight": ("S", "H"),
    "multiple_choice_head.summary.bias": ("S",),
}

_DENSE = DenseLayout(
    prefixes=("transformer.",),
    layer="h.{layer}.",
    outer={
        "wte.weight": ("V", "H"),
        "wpe.weight": ("P", "H"),
        "ln_f.weight": ("H",),
        "ln_f.bias": ("H",),
    },
    per_layer={
        "ln_1.weight": ("H",),
        "ln_1.bias": ("H",),
        "attn.c_attn.weight": ("H", "3H"),
        "attn.c_attn.bias": ("3H",),
        "attn.c_proj.weight": ("H", "H"),
        "attn.c_proj.bias": ("H",),
        "ln_2.weight": ("H",),
        "ln_2.bias": ("H",),
    },
    ffn=(
        FfnTensor(role="up", name="mlp.c_fc.weight", shape=("H", "F")),
        FfnTensor(role="up_bias", name="mlp.c_fc.bias", shape=("F",)),
        FfnTensor(role="down", name="mlp.c_proj.weight", shape=("F", "H")),
        FfnTensor(role="down_bias", name="mlp.c_proj.bias", shape=("H",)),
    ),
    norm="ln_2.weight",
    norm_bias="ln_2.bias",
    heads={
        "Model": Head(),
        "LMHeadModel": Head(prefix="transformer.", tensors=_LM, tied=_TIED),
        "DoubleHeadsModel": Head(
            prefix="transformer.",
            tensors=_LM | _SUMMARY,
            tied=_TIED,
            switches=dict.fromkeys(_SUMMARY, "summary_use_proj"),
        ),
        "ForSequenceClassification": Head(
            prefix="transformer.", tensors={"score.weight": ("C", "H")}
        ),
        "ForTokenClassification": Head(
            prefix="transformer.",
            tensors={"classifier.weight": ("C", "H"), "classifier.bias": ("C",)},
        ),
        "ForQuestionAnswering": Head(
            prefix="transformer.",
            tensors={"qa_outputs.weight": (2, "H"), "qa_outputs.bias": (2,)},
        ),
    },
    dims=_dims,
    canonical=_canonical,
    ties_by_default=True,
    buffers=(".attn.bias", ".attn.masked_bias", ".crossattention.bias",
             ".crossattention.masked_bias"),
)  # fmt: skip

GPT2 = Family(
    model_type="gpt2",
    class_prefixes=("GPT2", "GPT2Moe"),
    to_moe_config=own_moe_config,
    to_dense_config=own_dense_config,
    remote_code=True,
    dense=_DENSE,
    moe=MoeLayout(
        model_type="gpt2_moe",
        prefixes=("transformer.",),
        layer="h.{layer}.",
        router="mlp.router.weight",
        guard="mlp.c_fc.weight",
        experts=(
            ExpertTensor(name="mlp.experts.up_proj", roles=("up",), shape=("H", "F")),
            ExpertTensor(name="mlp.experts.up_proj_bias", roles=("up_bias",), shape=("F",)),
            ExpertTensor(name="mlp.experts.down_proj", roles=("down",), shape=("F", "H")),
            ExpertTensor(name="mlp.experts.down_proj_bias", roles=("down_bias",), shape=("H",)),
        ),
        norm="ln_2.weight",
        norm_bias="ln_2.bias",
        dims=_dims,
        moe_layers=listed_moe_layers,
        rest=rest_of(_DENSE),
        rule=RouterRule(
            norm_key="norm_topk_prob", route_by_key="route_by", straight_through=True
        ),
    ),
)  # fmt: skip
