"""BERT and BERT-MoE (``bert_moe``, whose classes are moeify's own)."""

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
    listed_moe_layers,
    num_labels,
    own_dense_config,
    own_moe_config,
    positive,
    rest_of,
)

__all__ = ["BERT"]


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

_DENSE = DenseLayout(
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

BERT = Family(
    model_type="bert",
    class_prefixes=("Bert", "BertMoe"),
    to_moe_config=own_moe_config,
    to_dense_config=own_dense_config,
    remote_code=True,
    dense=_DENSE,
    moe=MoeLayout(
        model_type="bert_moe",
        prefixes=("bert.",),
        layer="encoder.layer.{layer}.",
        router="moe.router.weight",
        guard="intermediate.dense.weight",
        experts=(
            ExpertTensor(name="moe.experts.up_proj", roles=("up",), shape=("F", "H")),
            ExpertTensor(name="moe.experts.up_proj_bias", roles=("up_bias",), shape=("F",)),
            ExpertTensor(name="moe.experts.down_proj", roles=("down",), shape=("H", "F")),
            ExpertTensor(name="moe.experts.down_proj_bias", roles=("down_bias",), shape=("H",)),
        ),
        norm="attention.output.LayerNorm.weight",
        norm_bias="attention.output.LayerNorm.bias",
        dims=_dims,
        moe_layers=listed_moe_layers,
        rest=rest_of(_DENSE),
        rule=RouterRule(norm_key="norm_topk_prob", route_by_key="route_by", straight_through=True),
    ),
)
