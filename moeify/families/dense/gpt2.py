"""GPT-2."""

from __future__ import annotations

from moeify.families.base import DenseLayout, FfnTensor, Head
from moeify.families.dense_names import renamed_keys
from moeify.families.values import Config, Shape, num_labels, positive

_canonical = renamed_keys(
    hidden_size="n_embd",
    max_position_embeddings="n_positions",
    num_attention_heads="n_head",
    num_hidden_layers="n_layer",
)


def _dims(config: Config) -> dict[str, int]:
    config = _canonical(config)
    hidden = positive(config, "n_embd", 768)
    return {
        "L": positive(config, "n_layer", 12),
        "H": hidden,
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

LAYOUT = DenseLayout(
    model_type="gpt2",
    class_prefix="GPT2",
    activation=("activation_function", "gelu_new"),
    prefixes=("transformer.",),
    layer="h.{layer}.",
    outer={"wte.weight": ("V", "H"), "wpe.weight": ("P", "H"), "ln_f.weight": ("H",), "ln_f.bias": ("H",)},
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
        "ForSequenceClassification": Head(prefix="transformer.", tensors={"score.weight": ("C", "H")}),
        "ForTokenClassification": Head(
            prefix="transformer.", tensors={"classifier.weight": ("C", "H"), "classifier.bias": ("C",)}
        ),
        "ForQuestionAnswering": Head(
            prefix="transformer.", tensors={"qa_outputs.weight": (2, "H"), "qa_outputs.bias": (2,)}
        ),
    },
    dims=_dims,
    canonical=_canonical,
    ties_by_default=True,
    buffers=(".attn.bias", ".attn.masked_bias", ".crossattention.bias", ".crossattention.masked_bias"),
)
