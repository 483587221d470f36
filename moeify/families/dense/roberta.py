"""RoBERTa: BERT with another head for masked tokens and another classifier."""

from __future__ import annotations

from dataclasses import replace

from moeify.families.base import Head
from moeify.families.dense.bert import CHOICE, CLASSIFIER, NO_POOLER, SPANS
from moeify.families.dense.bert import LAYOUT as BERT
from moeify.families.dense_names import encoder_dims
from moeify.families.values import Shape

_PREDICTIONS: dict[str, Shape] = {
    "lm_head.bias": ("V",),
    "lm_head.dense.weight": ("H", "H"),
    "lm_head.dense.bias": ("H",),
    "lm_head.layer_norm.weight": ("H",),
    "lm_head.layer_norm.bias": ("H",),
    "lm_head.decoder.weight": ("V", "H"),
    "lm_head.decoder.bias": ("V",),
}
PAIR_CLASSIFIER: dict[str, Shape] = {
    "classifier.dense.weight": ("H", "H"),
    "classifier.dense.bias": ("H",),
    "classifier.out_proj.weight": ("C", "H"),
    "classifier.out_proj.bias": ("C",),
}
"""What RoBERTa's kin puts over the first token, in two steps."""


def masked_head(base: str, lacks: frozenset[str] = NO_POOLER) -> Head:
    """The head for masked tokens of a model whose base is called ``base``."""
    tied = {
        "lm_head.decoder.weight": f"{base}embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    return Head(prefix=base, tensors=_PREDICTIONS, tied=tied, lacks=lacks)


LAYOUT = replace(
    BERT,
    model_type="roberta",
    class_prefix="Roberta",
    prefixes=("roberta.",),
    dims=encoder_dims(vocab=50265),
    heads={
        "Model": Head(),
        "ForCausalLM": masked_head("roberta."),
        "ForMaskedLM": masked_head("roberta."),
        "ForSequenceClassification": Head(prefix="roberta.", tensors=PAIR_CLASSIFIER, lacks=NO_POOLER),
        "ForMultipleChoice": Head(prefix="roberta.", tensors=CHOICE),
        "ForTokenClassification": Head(prefix="roberta.", tensors=CLASSIFIER, lacks=NO_POOLER),
        "ForQuestionAnswering": Head(prefix="roberta.", tensors=SPANS, lacks=NO_POOLER),
    },
)
