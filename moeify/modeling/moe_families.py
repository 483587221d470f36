"""The dense classes that mixtures are made of, as data: where each has its feed-forward network, and its heads.

This file travels inside checkpoints: it imports nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Where a layer has its feed-forward network; paths are relative to the layer.

    `classes` are the modules that hold it, with `{}` for the family's prefix; the mixture takes the place of
    `block`. `up` and `down` are the projections, `gate` that of a gated network, whose rows lie before those of
    `up` where both are the same. `dropout` and `inner_dropout` follow the whole and the activation.
    `scaled` says that projections back to the residual stream are drawn smaller the deeper the model is,
    `is_transposed` that weights lie as in `Conv1D`, [in, out], `biased` that projections have
    biases where no key `mlp_bias` says.
    """

    classes: tuple[str, ...]
    block: str
    up: str
    down: str
    activation: str
    gate: str | None = None
    dropout: str | None = None
    inner_dropout: str | None = None
    scaled: bool = False
    is_transposed: bool = False
    biased: bool = True

    @property
    def guard(self) -> str:
        """The tensor whose name stops dense classes."""
        return f"{self.up}.weight"


@dataclass(frozen=True, kw_only=True)
class MoeFamily:
    """One dense model type, and what its mixture takes over.

    `prefix` leads the names of its classes, `layers` is the list of layers in the base model. `heads` maps what
    follows `AutoModel` in an auto class to what follows the prefix in its class; `others` have no auto class.
    `tokenizer` is the class that the dense type has without saying so, `spared` are modules that some heads are built
    without and pass over in files, `causal` that no token sees later ones. `tp_plan` are modules of a layer outside of
    the feed-forward network, for types whose configuration splits none. `adapted` are the modules of attention that
    adapters are usually put on. `behind_padding` says that the first token's position is the one behind the padding's,
    `taken` that transformers has a mixture of the usual name, which is another one.
    """

    prefix: str
    layers: str
    ffn: FeedForward
    heads: Mapping[str, str]
    adapted: tuple[str, ...]
    others: tuple[str, ...] = ()
    tokenizer: str | None = None
    causal: bool = False
    spared: tuple[str, ...] = ()
    tp_plan: Mapping[str, str] = field(default_factory=dict)
    behind_padding: bool = False
    taken: bool = False

    @property
    def moe_prefix(self) -> str:
        """What leads the names of its mixture's classes."""
        return f"{self.prefix}{'OwnMoe' if self.taken else 'Moe'}"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What follows the prefix in the names of all its classes with weights, the base model's first."""
        return tuple(dict.fromkeys((self.heads[""], *self.heads.values(), *self.others)))


_LLAMA = FeedForward(
    classes=("{}MLP",),
    block="mlp",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    activation="mlp.act_fn",
    biased=False,
)
_PHI = FeedForward(
    classes=("{}MLP",),
    block="mlp",
    gate="mlp.gate_up_proj",
    up="mlp.gate_up_proj",
    down="mlp.down_proj",
    activation="mlp.activation_fn",
    biased=False,
)
_CLASSIFIERS = {name: name for name in ("ForSequenceClassification", "ForTokenClassification")}
_DECODER = {"": "Model", "ForCausalLM": "ForCausalLM", **_CLASSIFIERS}
_ALL = {**_DECODER, "ForQuestionAnswering": "ForQuestionAnswering"}
_BERT = FeedForward(
    classes=("{}Intermediate", "{}Output"),
    block="intermediate",
    up="intermediate.dense",
    down="output.dense",
    activation="intermediate.intermediate_act_fn",
)
_BERT_ATTENTION = {
    "attention.self.query": "colwise",
    "attention.self.key": "colwise",
    "attention.self.value": "colwise",
    "attention.output.dense": "rowwise",
}
_QUERY_VALUE = ("query", "value")
_PROJECTED = ("q_proj", "v_proj")
_TASKS = {
    f"For{task}": f"For{task}"
    for task in ("MaskedLM", "SequenceClassification", "QuestionAnswering", "TokenClassification", "MultipleChoice")
}
_ENCODER = {"": "Model", "ForPreTraining": "ForMaskedLM", **_TASKS}
_TEXT = {**_ENCODER, "ForTextEncoding": "Model"}
_ROBERTA = {**_TEXT, "ForCausalLM": "ForCausalLM"}

FAMILIES: Mapping[str, MoeFamily] = {
    "bert": MoeFamily(
        prefix="Bert",
        layers="encoder.layer",
        ffn=_BERT,
        adapted=_QUERY_VALUE,
        heads={
            **_TEXT,
            "ForPreTraining": "ForPreTraining",
            "ForCausalLM": "LMHeadModel",
            "ForNextSentencePrediction": "ForNextSentencePrediction",
        },
        tokenizer="BertTokenizer",
        spared=("bert.pooler", "cls.seq_relationship"),
        tp_plan=_BERT_ATTENTION,
    ),
    **{
        dense: MoeFamily(
            prefix=prefix,
            layers="encoder.layer",
            ffn=_BERT,
            adapted=_QUERY_VALUE,
            heads=heads,
            tokenizer=f"{prefix}Tokenizer",
            tp_plan=_BERT_ATTENTION,
            spared=("roberta.pooler",),
            behind_padding=True,
        )
        for dense, prefix, heads in (
            ("roberta", "Roberta", _ROBERTA),
            ("xlm-roberta", "XLMRoberta", _ROBERTA),
            ("camembert", "Camembert", {**_ENCODER, "ForCausalLM": "ForCausalLM"}),
        )
    },
    "electra": MoeFamily(
        prefix="Electra",
        layers="encoder.layer",
        ffn=_BERT,
        adapted=_QUERY_VALUE,
        heads={**_ROBERTA, "ForPreTraining": "ForPreTraining"},
        tokenizer="BertTokenizer",
        tp_plan=_BERT_ATTENTION,
    ),
    "mpnet": MoeFamily(
        prefix="MPNet",
        layers="encoder.layer",
        ffn=_BERT,
        adapted=("q", "v"),
        heads=_ENCODER,
        tokenizer="MPNetTokenizer",
        spared=("mpnet.pooler",),
        behind_padding=True,
    ),
    "deberta-v2": MoeFamily(
        prefix="DebertaV2",
        layers="encoder.layer",
        ffn=_BERT,
        adapted=("query_proj", "value_proj"),
        heads=_TEXT,
        tokenizer="DebertaV2Tokenizer",
    ),
    "distilbert": MoeFamily(
        prefix="DistilBert",
        layers="transformer.layer",
        ffn=FeedForward(
            classes=("FFN",),
            block="ffn",
            up="ffn.lin1",
            down="ffn.lin2",
            activation="ffn.activation",
            dropout="ffn.dropout",
        ),
        adapted=("q_lin", "v_lin"),
        heads=_TEXT,
        tokenizer="BertTokenizer",
    ),
    "modernbert": MoeFamily(
        prefix="ModernBert",
        layers="layers",
        ffn=FeedForward(
            classes=("{}MLP",),
            block="mlp",
            gate="mlp.Wi",
            up="mlp.Wi",
            down="mlp.Wo",
            activation="mlp.act",
            inner_dropout="mlp.drop",
            biased=False,
            scaled=True,
        ),
        adapted=("Wqkv",),
        heads={"": "Model", **_TASKS},
    ),
    **{
        dense: MoeFamily(
            prefix=prefix,
            layers="layers",
            ffn=ffn,
            heads=heads,
            causal=True,
            adapted=("qkv_proj",) if ffn is _PHI else _PROJECTED,
            taken=dense in ("qwen2", "qwen3"),
        )
        for dense, prefix, ffn, heads in (
            ("llama", "Llama", _LLAMA, _ALL),
            ("mistral", "Mistral", _LLAMA, _ALL),
            ("phi3", "Phi3", _PHI, _DECODER),
            ("ministral", "Ministral", _LLAMA, _ALL),
            ("qwen2", "Qwen2", _LLAMA, _ALL),
            ("qwen3", "Qwen3", _LLAMA, _ALL),
            ("smollm3", "SmolLM3", _LLAMA, _ALL),
            ("exaone4", "Exaone4", _LLAMA, {**_ALL, "ForPreTraining": "ForCausalLM"}),
            ("gemma", "Gemma", _LLAMA, _DECODER),
            ("gemma2", "Gemma2", _LLAMA, _DECODER),
        )
    },
    "gemma3_text": MoeFamily(
        prefix="Gemma3",
        layers="layers",
        ffn=_LLAMA,
        adapted=_PROJECTED,
        heads={
            "": "TextModel",
            "ForCausalLM": "ForCausalLM",
            "ForSequenceClassification": "TextForSequenceClassification",
        },
        causal=True,
    ),
    "gpt2": MoeFamily(
        prefix="GPT2",
        layers="h",
        ffn=FeedForward(
            classes=("{}MLP",),
            block="mlp",
            up="mlp.c_fc",
            down="mlp.c_proj",
            activation="mlp.act",
            dropout="mlp.dropout",
            scaled=True,
            is_transposed=True,
        ),
        adapted=("c_attn",),
        heads={
            "": "Model",
            "ForPreTraining": "LMHeadModel",
            "ForCausalLM": "LMHeadModel",
            **{name: name for name in _TASKS if name not in ("ForMaskedLM", "ForMultipleChoice")},
        },
        others=("DoubleHeadsModel",),
        tokenizer="GPT2Tokenizer",
        causal=True,
    ),
}
"""Dense `model_type` -> what its mixture is made of."""


def moe_type(dense_type: str) -> str:
    """The `model_type` of the mixture that a dense type becomes in moeify's own class."""
    return f"{dense_type.replace('-', '_')}_{'own_moe' if FAMILIES[dense_type].taken else 'moe'}"


def family_of(name: str) -> tuple[str, MoeFamily] | None:
    """The dense type and the family that a class of this name belongs to."""
    found = [(t, f) for t, f in FAMILIES.items() if name.startswith(f.moe_prefix)]
    return found[0] if found else None
