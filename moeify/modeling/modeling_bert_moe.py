"""BERT whose feed-forward networks are mixtures of experts, with every head BERT has.

The classes extend transformers' own: attention, embeddings, heads and models' forward passes are
inherited, and only the modules that hold a feed-forward network are built anew.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.integrations.moe import use_experts_implementation
from transformers.models.bert import modeling_bert as dense
from transformers.utils import logging
from transformers.utils.output_capturing import OutputRecorder

from .configuration_bert_moe import BertMoeConfig
from .moe_experts import Experts, ExpertsImplementations
from .moe_layers import MoeFeedForward, TopKRouting
from .moe_models import GuardedLayer, MoePreTrainedModel
from .moe_outputs import (
    MoeCausalLMOutput,
    MoeMaskedLMOutput,
    MoeModelOutputWithPooling,
    MoeMultipleChoiceOutput,
    MoeNextSentencePredictorOutput,
    MoeQuestionAnsweringOutput,
    MoeSequenceClassifierOutput,
    MoeTokenClassifierOutput,
    RouterOutput,
    add_router_losses,
    add_router_mask,
    record_router,
)
from .moe_pooling import SequencePool

logger = logging.get_logger(__name__)


@use_experts_implementation(experts_interface=ExpertsImplementations, has_gate=False, has_bias=True)
class BertMoeExperts(Experts):
    """E copies of BERT's feed-forward network: weights [E, F, H] and [E, H, F]."""

    def __init__(self, config: BertMoeConfig) -> None:
        super().__init__(
            num_experts=config.num_experts,
            hidden_size=config.hidden_size,
            ffn_size=config.intermediate_size,
            activation=config.hidden_act,
        )


class BertMoeOutput(nn.Module):
    """What `BertOutput` does after its dense layer: dropout, residual and normalisation."""

    def __init__(self, config: BertMoeConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Map two [B, S, H] to one."""
        return self.LayerNorm(self.dropout(hidden_states) + input_tensor)


class BertMoeLayer(GuardedLayer, dense.BertLayer):
    """`BertLayer` with `moe` in place of `intermediate` and `output.dense`."""

    guard = "intermediate.dense.weight"

    def __init__(self, config: BertMoeConfig, layer_idx: int | None = None) -> None:
        # BertLayer's own constructor would allocate the dense network.
        super(dense.BertLayer, self).__init__()
        self.is_decoder = config.is_decoder
        self.add_cross_attention = config.add_cross_attention
        self.attention = dense.BertAttention(config, is_causal=config.is_decoder, layer_idx=layer_idx)
        if config.add_cross_attention:
            if not config.is_decoder:
                raise ValueError("add_cross_attention=True needs is_decoder=True.")
            self.crossattention = dense.BertAttention(
                config, is_causal=False, layer_idx=layer_idx, is_cross_attention=True
            )
        pool = None
        if config.route_by == "sequence":
            pool = SequencePool(causal=config.is_decoder, layer=layer_idx or 0, num_layers=config.num_hidden_layers)
        self.moe = MoeFeedForward(
            BertMoeExperts(config),
            hidden_size=config.hidden_size,
            top_k=config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            pool=pool,
        )
        self.output = BertMoeOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        router_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Map [B, S, H] to [B, S, H]; `router_mask` is the mask of `SequencePool`."""
        attended, _ = self.attention(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
        if self.is_decoder and encoder_hidden_states is not None:
            if not self.add_cross_attention:
                raise ValueError("encoder_hidden_states need a config with add_cross_attention.")
            attended, _ = self.crossattention(
                attended,
                None,
                encoder_hidden_states,
                encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.output(self.moe(attended, mask=router_mask, cache=past_key_values), attended)


class BertMoeEncoder(dense.BertEncoder):
    """Layers with experts where the config puts them, dense layers elsewhere."""

    def __init__(self, config: BertMoeConfig) -> None:
        super(dense.BertEncoder, self).__init__()
        self.config = config
        self.layer = nn.ModuleList(
            (BertMoeLayer if config.is_moe_layer(n) else dense.BertLayer)(config, layer_idx=n)
            for n in range(config.num_hidden_layers)
        )


class BertMoePreTrainedModel(MoePreTrainedModel, dense.BertPreTrainedModel):
    """What all BERT-MoE models share: configuration, initialisation and output recording."""

    moe_config_class = BertMoeConfig
    guard = "encoder.layer.{layer}." + BertMoeLayer.guard
    _no_split_modules: ClassVar = ["BertEmbeddings", "BertLayer", "BertMoeLayer"]
    _can_record_outputs: ClassVar = {
        **dense.BertPreTrainedModel._can_record_outputs,
        "router_logits": OutputRecorder(TopKRouting, index=0),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Experts):
            for weight in (module.up_proj, module.down_proj):
                init.normal_(weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.up_proj_bias)
            init.zeros_(module.down_proj_bias)


class BertMoeModel(dense.BertModel, BertMoePreTrainedModel):
    """BERT-MoE without a head; see `BertModel`."""

    _auto_class = "AutoModel"
    _no_split_modules = BertMoePreTrainedModel._no_split_modules

    def __init__(self, config: BertMoeConfig, add_pooling_layer: bool = True) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = dense.BertEmbeddings(config)
        self.encoder = BertMoeEncoder(config)
        self.pooler = dense.BertPooler(config) if add_pooling_layer else None
        self.post_init()

    forward = record_router(MoeModelOutputWithPooling)(dense.BertModel.forward)


@dataclass
class BertMoeForPreTrainingOutput(RouterOutput, dense.BertForPreTrainingOutput):
    """`BertForPreTrainingOutput` with the router's part."""


class BertMoeForPreTraining(dense.BertForPreTraining, BertMoePreTrainedModel):
    """BERT-MoE with the masked language modelling and next sentence heads."""

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.bert = BertMoeModel(config)
        self.cls = dense.BertPreTrainingHeads(config)
        self.post_init()

    forward = add_router_losses(BertMoeForPreTrainingOutput)(dense.BertForPreTraining.forward)


class BertMoeLMHeadModel(dense.BertLMHeadModel, BertMoePreTrainedModel):
    """BERT-MoE as a decoder, with a language modelling head and `generate`."""

    _auto_class = "AutoModelForCausalLM"
    # A checkpoint made for pre-training carries these; this head has no use for them.
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"cls\.seq_relationship\.", r"bert\.pooler\."]

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        if not config.is_decoder:
            logger.warning("To use BertMoeLMHeadModel on its own, set is_decoder=True.")
        self.bert = BertMoeModel(config, add_pooling_layer=False)
        self.cls = dense.BertOnlyMLMHead(config)
        self.post_init()

    forward = add_router_losses(MoeCausalLMOutput)(dense.BertLMHeadModel.forward)
    prepare_inputs_for_generation = add_router_mask(dense.BertLMHeadModel.prepare_inputs_for_generation)


class BertMoeForMaskedLM(dense.BertForMaskedLM, BertMoePreTrainedModel):
    """BERT-MoE with the masked language modelling head."""

    _auto_class = "AutoModelForMaskedLM"
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"cls\.seq_relationship\.", r"bert\.pooler\."]

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        if config.is_decoder:
            logger.warning("BertMoeForMaskedLM needs is_decoder=False to see both directions.")
        self.bert = BertMoeModel(config, add_pooling_layer=False)
        self.cls = dense.BertOnlyMLMHead(config)
        self.post_init()

    forward = add_router_losses(MoeMaskedLMOutput)(dense.BertForMaskedLM.forward)


class BertMoeForNextSentencePrediction(dense.BertForNextSentencePrediction, BertMoePreTrainedModel):
    """BERT-MoE with the next sentence head."""

    _auto_class = "AutoModelForNextSentencePrediction"

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.bert = BertMoeModel(config)
        self.cls = dense.BertOnlyNSPHead(config)
        self.post_init()

    forward = add_router_losses(MoeNextSentencePredictorOutput)(dense.BertForNextSentencePrediction.forward)


class BertMoeForSequenceClassification(dense.BertForSequenceClassification, BertMoePreTrainedModel):
    """BERT-MoE with a classifier or regressor over the pooled sequence."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = BertMoeModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    forward = add_router_losses(MoeSequenceClassifierOutput)(dense.BertForSequenceClassification.forward)


class BertMoeForMultipleChoice(dense.BertForMultipleChoice, BertMoePreTrainedModel):
    """BERT-MoE that scores several continuations."""

    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.bert = BertMoeModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    forward = add_router_losses(MoeMultipleChoiceOutput)(dense.BertForMultipleChoice.forward)


class BertMoeForTokenClassification(dense.BertForTokenClassification, BertMoePreTrainedModel):
    """BERT-MoE with a classifier over each token."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = BertMoeModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    forward = add_router_losses(MoeTokenClassifierOutput)(dense.BertForTokenClassification.forward)


class BertMoeForQuestionAnswering(dense.BertForQuestionAnswering, BertMoePreTrainedModel):
    """BERT-MoE that marks the answer's first and last token."""

    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: BertMoeConfig) -> None:
        BertMoePreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = BertMoeModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    forward = add_router_losses(MoeQuestionAnsweringOutput)(dense.BertForQuestionAnswering.forward)


def _classifier_dropout(config: BertMoeConfig) -> float:
    if config.classifier_dropout is not None:
        return config.classifier_dropout
    return config.hidden_dropout_prob


__all__ = [
    "BertMoeForMaskedLM",
    "BertMoeForMultipleChoice",
    "BertMoeForNextSentencePrediction",
    "BertMoeForPreTraining",
    "BertMoeForQuestionAnswering",
    "BertMoeForSequenceClassification",
    "BertMoeForTokenClassification",
    "BertMoeLMHeadModel",
    "BertMoeModel",
    "BertMoePreTrainedModel",
]
