"""MPNet."""

from __future__ import annotations

from dataclasses import replace

from moeify.families.base import Head
from moeify.families.dense.bert import CHOICE, CLASSIFIER, NO_POOLER, POOLED, SPANS
from moeify.families.dense.bert import LAYOUT as BERT
from moeify.families.dense.roberta import PAIR_CLASSIFIER, masked_head
from moeify.families.dense_names import encoder_dims
from moeify.families.values import Config, Dims, positive

_dims = encoder_dims(vocab=30527)


def _all_dims(config: Config) -> Dims:
    # Buckets of distances, and what each head adds for them.
    buckets = positive(config, "relative_attention_num_buckets", 32)
    return {**_dims(config), "B": buckets, "N": positive(config, "num_attention_heads", 12)}


LAYOUT = replace(
    BERT,
    model_type="mpnet",
    class_prefix="MPNet",
    prefixes=("mpnet.",),
    outer={
        "embeddings.word_embeddings.weight": ("V", "H"),
        "embeddings.position_embeddings.weight": ("P", "H"),
        "embeddings.LayerNorm.weight": ("H",),
        "embeddings.LayerNorm.bias": ("H",),
        "encoder.relative_attention_bias.weight": ("B", "N"),
        **POOLED,
    },
    per_layer={
        **{
            f"attention.attn.{part}.{kind}": shape
            for part in "qkvo"
            for kind, shape in (("weight", ("H", "H")), ("bias", ("H",)))
        },
        "attention.LayerNorm.weight": ("H",),
        "attention.LayerNorm.bias": ("H",),
        "output.LayerNorm.weight": ("H",),
        "output.LayerNorm.bias": ("H",),
    },
    norm="attention.LayerNorm.weight",
    norm_bias="attention.LayerNorm.bias",
    dims=_all_dims,
    gives=1,
    heads={
        "Model": Head(),
        "ForMaskedLM": masked_head("mpnet."),
        "ForSequenceClassification": Head(prefix="mpnet.", tensors=PAIR_CLASSIFIER, lacks=NO_POOLER),
        "ForMultipleChoice": Head(prefix="mpnet.", tensors=CHOICE),
        "ForTokenClassification": Head(prefix="mpnet.", tensors=CLASSIFIER, lacks=NO_POOLER),
        "ForQuestionAnswering": Head(prefix="mpnet.", tensors=SPANS, lacks=NO_POOLER),
    },
)
