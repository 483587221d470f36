"""BERT."""

from __future__ import annotations

from moeify.families.base import DenseLayout, FfnTensor, Head
from moeify.families.values import Config, num_labels, positive


def _dims(config: Config) -> dict[str, int]:
    return {
        "L": positive(config, "num_hidden_layers", 12),
        "H": positive(config, "hidden_size", 768),
        "F": positive(config, "intermediate_size", 3072),
        "V": positive(config, "vocab_size", 30522),
        "P": positive(config, "max_position_embeddings", 512),
        "T": positive(config, "type_vocab_size", 2),
        "C": num_labels(config),
    }


_LINEAR_HH = ("H", "H")
_POOLED = {"pooler.dense.weight": _LINEAR_HH, "pooler.dense.bias": ("H",)}
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
_NO_POOLER = frozenset(_POOLED)
_LM = Head(prefix="bert.", tensors=_PREDICTIONS, tied=_TIED, lacks=_NO_POOLER)
_CLASSIFIER = {"classifier.weight": ("C", "H"), "classifier.bias": ("C",)}
_CHOICE = {"classifier.weight": (1, "H"), "classifier.bias": (1,)}
_SPANS = {"qa_outputs.weight": ("C", "H"), "qa_outputs.bias": ("C",)}

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
        **_POOLED,
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
        "ForSequenceClassification": Head(prefix="bert.", tensors=_CLASSIFIER),
        "ForMultipleChoice": Head(prefix="bert.", tensors=_CHOICE),
        "ForTokenClassification": Head(prefix="bert.", tensors=_CLASSIFIER, lacks=_NO_POOLER),
        "ForQuestionAnswering": Head(prefix="bert.", tensors=_SPANS, lacks=_NO_POOLER),
    },
    dims=_dims,
    ties_by_default=True,
    aliases={".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"},
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    optional=frozenset(_POOLED),
)
