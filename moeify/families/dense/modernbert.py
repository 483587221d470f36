"""ModernBERT, whose FFN is gated by one product."""

from __future__ import annotations

from collections.abc import Sequence

from moeify.families.base import DenseLayout, FfnTensor, Head
from moeify.families.dense_names import if_biased
from moeify.families.values import Config, Dims, Shape, num_labels, positive


def _dims(config: Config) -> Dims:
    return {
        "L": positive(config, "num_hidden_layers", 22),
        "H": positive(config, "hidden_size", 768),
        "F": positive(config, "intermediate_size", 1152),
        "V": positive(config, "vocab_size", 50368),
        "C": num_labels(config),
    }


def _kinds(config: Config) -> Sequence[str]:
    # The first layer reads what the embeddings' normalisation gives.
    return ["first"] + ["later"] * (_dims(config)["L"] - 1)


def _canonical(config: Config) -> Config:
    """With the switches of biases that ModernBertConfig has off."""
    return {"norm_bias": False, "classifier_bias": False, **config}


def _head(tensors: dict[str, Shape]) -> Head:
    return Head(
        prefix="model.",
        tensors={
            "head.dense.weight": ("H", "H"),
            "head.dense.bias": ("H",),
            "head.norm.weight": ("H",),
            "head.norm.bias": ("H",),
            **tensors,
        },
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"} if "decoder.weight" in tensors else {},
        switches={"head.dense.bias": "classifier_bias", "head.norm.bias": "norm_bias", "decoder.bias": "decoder_bias"},
    )


_CLASSIFIER = _head({"classifier.weight": ("C", "H"), "classifier.bias": ("C",)})

LAYOUT = DenseLayout(
    model_type="modernbert",
    class_prefix="ModernBert",
    encoder=True,
    activation=("hidden_activation", "gelu"),
    prefixes=("model.",),
    outer={
        "embeddings.tok_embeddings.weight": ("V", "H"),
        "embeddings.norm.weight": ("H",),
        "embeddings.norm.bias": ("H",),
        "final_norm.weight": ("H",),
        "final_norm.bias": ("H",),
    },
    per_layer={
        "attn.Wqkv.weight": ("3H", "H"),
        "attn.Wqkv.bias": ("3H",),
        "attn.Wo.weight": ("H", "H"),
        "attn.Wo.bias": ("H",),
        "mlp_norm.weight": ("H",),
        "mlp_norm.bias": ("H",),
    },
    kinds=_kinds,
    by_kind={"later": {"attn_norm.weight": ("H",), "attn_norm.bias": ("H",)}},
    ffn=(
        FfnTensor(role="gate", name="mlp.gate.weight", shape=("F", "H")),
        FfnTensor(role="up", name="mlp.up.weight", shape=("F", "H")),
        FfnTensor(role="down", name="mlp.Wo.weight", shape=("H", "F")),
        FfnTensor(role="gate_bias", name="mlp.gate.bias", shape=("F",)),
        FfnTensor(role="up_bias", name="mlp.up.bias", shape=("F",)),
        FfnTensor(role="down_bias", name="mlp.Wo.bias", shape=("H",)),
    ),
    joined={"mlp.Wi.weight": ("mlp.gate.weight", "mlp.up.weight"), "mlp.Wi.bias": ("mlp.gate.bias", "mlp.up.bias")},
    norm="mlp_norm.weight",
    heads={
        "Model": Head(),
        "ForMaskedLM": _head({"decoder.weight": ("V", "H"), "decoder.bias": ("V",)}),
        "ForSequenceClassification": _CLASSIFIER,
        "ForMultipleChoice": _head({"classifier.weight": (1, "H"), "classifier.bias": (1,)}),
        "ForTokenClassification": _CLASSIFIER,
        "ForQuestionAnswering": _CLASSIFIER,
    },
    dims=_dims,
    canonical=_canonical,
    ties_by_default=True,
    buffers=(".inv_freq",),
    only_if={
        **dict.fromkeys(
            ("embeddings.norm.bias", "final_norm.bias", "mlp_norm.bias", "attn_norm.bias"),
            lambda config: bool(config.get("norm_bias")),
        ),
        **if_biased("mlp.gate.bias", "mlp.up.bias", "mlp.Wo.bias"),
        **dict.fromkeys(("attn.Wqkv.bias", "attn.Wo.bias"), lambda config: bool(config.get("attention_bias"))),
    },
)
