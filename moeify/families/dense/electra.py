"""ELECTRA: BERT whose embeddings may be narrower, with heads of its own."""

from __future__ import annotations

from dataclasses import replace

from moeify.families.base import Head
from moeify.families.dense.bert import CHOICE, CLASSIFIER, POOLED, SPANS
from moeify.families.dense.bert import LAYOUT as BERT
from moeify.families.dense.roberta import PAIR_CLASSIFIER
from moeify.families.dense_names import encoder_dims
from moeify.families.values import Config, Dims, Shape, positive

_dims = encoder_dims(hidden=256, width=1024)


def _all_dims(config: Config) -> Dims:
    return {**_dims(config), "M": positive(config, "embedding_size", 128)}


_PROJECTION: dict[str, Shape] = {"embeddings_project.weight": ("H", "M"), "embeddings_project.bias": ("H",)}
_GENERATOR = Head(
    prefix="electra.",
    tensors={
        "generator_predictions.LayerNorm.weight": ("M",),
        "generator_predictions.LayerNorm.bias": ("M",),
        "generator_predictions.dense.weight": ("M", "H"),
        "generator_predictions.dense.bias": ("M",),
        "generator_lm_head.weight": ("V", "M"),
        "generator_lm_head.bias": ("V",),
    },
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
)
_SUMMARY: dict[str, Shape] = {"sequence_summary.summary.weight": ("H", "H"), "sequence_summary.summary.bias": ("H",)}

LAYOUT = replace(
    BERT,
    model_type="electra",
    class_prefix="Electra",
    prefixes=("electra.",),
    outer={
        **{
            name: tuple("M" if size == "H" else size for size in shape)
            for name, shape in BERT.outer.items()
            if name not in POOLED
        },
        **_PROJECTION,
    },
    dims=_all_dims,
    heads={
        "Model": Head(),
        "ForPreTraining": Head(
            prefix="electra.",
            tensors={
                "discriminator_predictions.dense.weight": ("H", "H"),
                "discriminator_predictions.dense.bias": ("H",),
                "discriminator_predictions.dense_prediction.weight": (1, "H"),
                "discriminator_predictions.dense_prediction.bias": (1,),
            },
        ),
        "ForCausalLM": _GENERATOR,
        "ForMaskedLM": _GENERATOR,
        "ForSequenceClassification": Head(prefix="electra.", tensors=PAIR_CLASSIFIER),
        "ForMultipleChoice": Head(
            prefix="electra.", tensors={**_SUMMARY, **CHOICE}, switches=dict.fromkeys(_SUMMARY, "summary_use_proj")
        ),
        "ForTokenClassification": Head(prefix="electra.", tensors=CLASSIFIER),
        "ForQuestionAnswering": Head(prefix="electra.", tensors=SPANS),
    },
    optional=frozenset(),
    only_if=dict.fromkeys(_PROJECTION, lambda config: _all_dims(config)["M"] != _all_dims(config)["H"]),
)
