"""DistilBERT."""

from __future__ import annotations

from moeify.families.base import DenseLayout, FfnTensor, Head
from moeify.families.dense.bert import CHOICE, CLASSIFIER, SPANS
from moeify.families.dense_names import renamed_keys
from moeify.families.values import Config, Dims, Shape, num_labels, positive

_canonical = renamed_keys(hidden_size="dim", num_attention_heads="n_heads", num_hidden_layers="n_layers")


def _dims(config: Config) -> Dims:
    config = _canonical(config)
    return {
        "L": positive(config, "n_layers", 6),
        "H": positive(config, "dim", 768),
        "F": positive(config, "hidden_dim", 3072),
        "V": positive(config, "vocab_size", 30522),
        "P": positive(config, "max_position_embeddings", 512),
        "C": num_labels(config),
    }


_LINEAR: Shape = ("H", "H")
_BEFORE: dict[str, Shape] = {"pre_classifier.weight": _LINEAR, "pre_classifier.bias": ("H",)}

LAYOUT = DenseLayout(
    model_type="distilbert",
    class_prefix="DistilBert",
    encoder=True,
    activation=("activation", "gelu"),
    prefixes=("distilbert.",),
    layer="transformer.layer.{layer}.",
    outer={
        "embeddings.word_embeddings.weight": ("V", "H"),
        "embeddings.position_embeddings.weight": ("P", "H"),
        "embeddings.LayerNorm.weight": ("H",),
        "embeddings.LayerNorm.bias": ("H",),
    },
    per_layer={
        **{
            f"attention.{part}_lin.{kind}": shape
            for part in ("q", "k", "v", "out")
            for kind, shape in (("weight", _LINEAR), ("bias", ("H",)))
        },
        **{f"{norm}_layer_norm.{kind}": ("H",) for norm in ("sa", "output") for kind in ("weight", "bias")},
    },
    ffn=(
        FfnTensor(role="up", name="ffn.lin1.weight", shape=("F", "H")),
        FfnTensor(role="up_bias", name="ffn.lin1.bias", shape=("F",)),
        FfnTensor(role="down", name="ffn.lin2.weight", shape=("H", "F")),
        FfnTensor(role="down_bias", name="ffn.lin2.bias", shape=("H",)),
    ),
    norm="sa_layer_norm.weight",
    norm_bias="sa_layer_norm.bias",
    heads={
        "Model": Head(),
        "ForMaskedLM": Head(
            prefix="distilbert.",
            tensors={
                "vocab_transform.weight": _LINEAR,
                "vocab_transform.bias": ("H",),
                "vocab_layer_norm.weight": ("H",),
                "vocab_layer_norm.bias": ("H",),
                "vocab_projector.weight": ("V", "H"),
                "vocab_projector.bias": ("V",),
            },
            tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ),
        "ForSequenceClassification": Head(prefix="distilbert.", tensors={**_BEFORE, **CLASSIFIER}),
        "ForMultipleChoice": Head(prefix="distilbert.", tensors={**_BEFORE, **CHOICE}),
        "ForTokenClassification": Head(prefix="distilbert.", tensors=CLASSIFIER),
        "ForQuestionAnswering": Head(prefix="distilbert.", tensors=SPANS),
    },
    dims=_dims,
    canonical=_canonical,
    ties_by_default=True,
    buffers=("embeddings.position_ids",),
)
