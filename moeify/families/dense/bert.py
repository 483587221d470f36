"""BERT."""

from __future__ import annotations

from moeify.families.base import DenseLayout, FfnTensor, Head
from moeify.families.dense_names import encoder_dims

_LINEAR_HH = ("H", "H")
POOLED = {"pooler.dense.weight": _LINEAR_HH, "pooler.dense.bias": ("H",)}
_PREDICTIONS = {
    "cls.predictions.bias": ("V",),
    "cls.predictions.transform.dense.weight": _LINEAR_HH,
    "cls.predictions.transform.dense.bias": ("H",),
    "cls.predictions.transform.LayerNorm.weight": ("H",),
    "cls.predictions.transform.LayerNorm.bias": ("H",),
    "cls.predictions.decoder.weight": ("V", "H"),
    "cls.predictions.decoder.bias": ("V",),
}
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_NSP = {"cls.seq_relationship.weight": (2, "H"), "cls.seq_relationship.bias": (2,)}
NO_POOLER = frozenset(POOLED)
_LM = Head(prefix="bert.", tensors=_PREDICTIONS, tied=_TIED, lacks=NO_POOLER)
CLASSIFIER = {"classifier.weight": ("C", "H"), "classifier.bias": ("C",)}
CHOICE = {"classifier.weight": (1, "H"), "classifier.bias": (1,)}
SPANS = {"qa_outputs.weight": ("C", "H"), "qa_outputs.bias": ("C",)}

LAYOUT = DenseLayout(
    model_type="bert",
    class_prefix="Bert",
    encoder=True,
    activation=("hidden_act", "gelu"),
    prefixes=("bert.",),
    layer="encoder.layer.{layer}.",
    outer={
        "embeddings.word_embeddings.weight": ("V", "H"),
        "embeddings.position_embeddings.weight": ("P", "H"),
        "embeddings.token_type_embeddings.weight": ("T", "H"),
        "embeddings.LayerNorm.weight": ("H",),
        "embeddings.LayerNorm.bias": ("H",),
        **POOLED,
    },
    per_layer={
        **{
            f"attention.{part}.{kind}": shape
            for part in ("self.query", "self.key", "self.value", "output.dense")
            for kind, shape in (("weight", _LINEAR_HH), ("bias", ("H",)))
        },
        "attention.output.LayerNorm.weight": ("H",),
        "attention.output.LayerNorm.bias": ("H",),
        "output.LayerNorm.weight": ("H",),
        "output.LayerNorm.bias": ("H",),
    },
    ffn=(
        FfnTensor(role="up", name="intermediate.dense.weight", shape=("F", "H")),
        FfnTensor(role="up_bias", name="intermediate.dense.bias", shape=("F",)),
        FfnTensor(role="down", name="output.dense.weight", shape=("H", "F")),
        FfnTensor(role="down_bias", name="output.dense.bias", shape=("H",)),
    ),
    norm="attention.output.LayerNorm.weight",
    norm_bias="attention.output.LayerNorm.bias",
    heads={
        "Model": Head(),
        "ForPreTraining": Head(prefix="bert.", tensors=_PREDICTIONS | _NSP, tied=_TIED),
        "LMHeadModel": _LM,
        "ForMaskedLM": _LM,
        "ForNextSentencePrediction": Head(prefix="bert.", tensors=_NSP),
        "ForSequenceClassification": Head(prefix="bert.", tensors=CLASSIFIER),
        "ForMultipleChoice": Head(prefix="bert.", tensors=CHOICE),
        "ForTokenClassification": Head(prefix="bert.", tensors=CLASSIFIER, lacks=NO_POOLER),
        "ForQuestionAnswering": Head(prefix="bert.", tensors=SPANS, lacks=NO_POOLER),
    },
    dims=encoder_dims(),
    ties_by_default=True,
    aliases={".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"},
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    optional=frozenset(POOLED),
)
