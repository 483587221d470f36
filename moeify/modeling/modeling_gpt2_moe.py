"""GPT-2 whose feed-forward networks are mixtures of experts, with every head GPT-2 has.

The classes extend transformers' own: attention, embeddings, heads and models' forward passes are
inherited, and only the modules that hold a feed-forward network are built anew.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.integrations.moe import use_experts_implementation
from transformers.models.gpt2 import modeling_gpt2 as dense
from transformers.utils.output_capturing import OutputRecorder

from .configuration_gpt2_moe import GPT2MoeConfig
from .moe_experts import Experts, ExpertsImplementations
from .moe_layers import MoeFeedForward, TopKRouting
from .moe_models import GuardedLayer, MoePreTrainedModel
from .moe_outputs import (
    MoeCausalLMOutput,
    MoeModelOutputWithPast,
    MoeQuestionAnsweringOutput,
    MoeSequenceClassifierOutputWithPast,
    MoeTokenClassifierOutput,
    RouterOutput,
    add_router_losses,
    add_router_mask,
    record_router,
)
from .moe_pooling import SequencePool


@use_experts_implementation(
    experts_interface=ExpertsImplementations, has_gate=False, has_bias=True, is_transposed=True
)
class GPT2MoeExperts(Experts):
    """E copies of GPT-2's feed-forward network: weights [E, H, F] and [E, F, H], as in Conv1D."""

    def __init__(self, config: GPT2MoeConfig) -> None:
        super().__init__(
            num_experts=config.num_experts,
            hidden_size=config.n_embd,
            ffn_size=config.ffn_size,
            activation=config.activation_function,
            is_transposed=True,
        )


class GPT2MoeMLP(MoeFeedForward):
    """`MoeFeedForward` followed by the dropout that ends `GPT2MLP`."""

    def __init__(self, config: GPT2MoeConfig, pool: SequencePool | None = None) -> None:
        super().__init__(
            GPT2MoeExperts(config),
            hidden_size=config.n_embd,
            top_k=config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            pool=pool,
        )
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor, **batch: Any) -> Tensor:
        """Map [B, S, H] to [B, S, H]; `batch` are the keywords of `SequencePool`."""
        return self.dropout(super().forward(hidden_states, **batch))


class GPT2MoeBlock(GuardedLayer, dense.GPT2Block):
    """`GPT2Block` with experts in `mlp`."""

    guard = "mlp.c_fc.weight"

    def __init__(self, config: GPT2MoeConfig, layer_idx: int | None = None) -> None:
        # GPT2Block's own constructor would allocate the dense network.
        super(dense.GPT2Block, self).__init__()
        eps = config.layer_norm_epsilon
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=eps)
        self.attn = dense.GPT2Attention(config=config, layer_idx=layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=eps)
        if config.add_cross_attention:
            self.crossattention = dense.GPT2Attention(config=config, is_cross_attention=True, layer_idx=layer_idx)
            self.ln_cross_attn = nn.LayerNorm(config.n_embd, eps=eps)
        pool = None
        if config.route_by == "sequence":
            pool = SequencePool(causal=True, layer=layer_idx or 0, num_layers=config.n_layer)
        self.mlp = GPT2MoeMLP(config, pool)

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        router_mask: Tensor | None = None,
        router_starts: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Map [B, S, H] to [B, S, H]; the router's arguments are those of `SequencePool`."""
        attended, _ = self.attn(
            self.ln_1(hidden_states), past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        hidden_states = hidden_states + attended
        if encoder_hidden_states is not None:
            if not hasattr(self, "crossattention"):
                raise ValueError("encoder_hidden_states need a config with add_cross_attention.")
            attended, _ = self.crossattention(
                self.ln_cross_attn(hidden_states),
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
            )
            hidden_states = hidden_states + attended
        return hidden_states + self.mlp(
            self.ln_2(hidden_states), mask=router_mask, starts=router_starts, cache=past_key_values
        )


class GPT2MoePreTrainedModel(MoePreTrainedModel, dense.GPT2PreTrainedModel):
    """What all GPT-2-MoE models share: configuration, initialisation and output recording."""

    moe_config_class = GPT2MoeConfig
    guard = "h.{layer}." + GPT2MoeBlock.guard
    _no_split_modules: ClassVar = ["GPT2Block", "GPT2MoeBlock"]
    _can_record_outputs: ClassVar = {
        **dense.GPT2PreTrainedModel._can_record_outputs,
        "router_logits": OutputRecorder(TopKRouting, index=0),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Experts):
            std = self.config.initializer_range
            init.normal_(module.up_proj, mean=0.0, std=std)
            # As in the dense model, weights that write to the residual stream shrink with depth.
            std /= math.sqrt(2 * self.config.n_layer)
            init.normal_(module.down_proj, mean=0.0, std=std)
            init.zeros_(module.up_proj_bias)
            init.zeros_(module.down_proj_bias)


class GPT2MoeModel(dense.GPT2Model, GPT2MoePreTrainedModel):
    """GPT-2-MoE without a head; see `GPT2Model`."""

    _auto_class = "AutoModel"

    def __init__(self, config: GPT2MoeConfig) -> None:
        GPT2MoePreTrainedModel.__init__(self, config)
        self.embed_dim = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(
            (GPT2MoeBlock if config.is_moe_layer(n) else dense.GPT2Block)(config, layer_idx=n)
            for n in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self._attn_implementation = config._attn_implementation
        self.post_init()

    forward = record_router(MoeModelOutputWithPast)(dense.GPT2Model.forward)


class GPT2MoeLMHeadModel(dense.GPT2LMHeadModel, GPT2MoePreTrainedModel):
    """GPT-2-MoE with the language modelling head and `generate`."""

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: GPT2MoeConfig) -> None:
        GPT2MoePreTrainedModel.__init__(self, config)
        self.transformer = GPT2MoeModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    forward = add_router_losses(MoeCausalLMOutput)(dense.GPT2LMHeadModel.forward)
    prepare_inputs_for_generation = add_router_mask(dense.GPT2LMHeadModel.prepare_inputs_for_generation)


@dataclass
class GPT2MoeDoubleHeadsModelOutput(RouterOutput, dense.GPT2DoubleHeadsModelOutput):
    """`GPT2DoubleHeadsModelOutput` with the router's part."""


class GPT2MoeDoubleHeadsModel(dense.GPT2DoubleHeadsModel, GPT2MoePreTrainedModel):
    """GPT-2-MoE with the language modelling and the multiple choice head."""

    # transformers has no auto class for it; the name makes saving carry the source files along.
    _auto_class = "GPT2MoeDoubleHeadsModel"

    def __init__(self, config: GPT2MoeConfig) -> None:
        GPT2MoePreTrainedModel.__init__(self, config)
        config.num_labels = 1
        self.transformer = GPT2MoeModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.multiple_choice_head = dense.GPT2SequenceSummary(config)
        self.post_init()

    forward = add_router_losses(GPT2MoeDoubleHeadsModelOutput)(dense.GPT2DoubleHeadsModel.forward)
    prepare_inputs_for_generation = add_router_mask(dense.GPT2DoubleHeadsModel.prepare_inputs_for_generation)


class GPT2MoeForSequenceClassification(dense.GPT2ForSequenceClassification, GPT2MoePreTrainedModel):
    """GPT-2-MoE with a classifier or regressor over the last real token."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: GPT2MoeConfig) -> None:
        GPT2MoePreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.transformer = GPT2MoeModel(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()

    forward = add_router_losses(MoeSequenceClassifierOutputWithPast)(dense.GPT2ForSequenceClassification.forward)


class GPT2MoeForTokenClassification(dense.GPT2ForTokenClassification, GPT2MoePreTrainedModel):
    """GPT-2-MoE with a classifier over each token."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: GPT2MoeConfig) -> None:
        GPT2MoePreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.transformer = GPT2MoeModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.n_embd, config.num_labels)
        self.post_init()

    forward = add_router_losses(MoeTokenClassifierOutput)(dense.GPT2ForTokenClassification.forward)


class GPT2MoeForQuestionAnswering(dense.GPT2ForQuestionAnswering, GPT2MoePreTrainedModel):
    """GPT-2-MoE that marks the answer's first and last token."""

    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: GPT2MoeConfig) -> None:
        GPT2MoePreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.transformer = GPT2MoeModel(config)
        self.qa_outputs = nn.Linear(config.n_embd, 2)
        self.post_init()

    forward = add_router_losses(MoeQuestionAnsweringOutput)(dense.GPT2ForQuestionAnswering.forward)


def _classifier_dropout(config: GPT2MoeConfig) -> float:
    for key in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, key, None) is not None:
            return getattr(config, key)
    return 0.1


__all__ = [
    "GPT2MoeDoubleHeadsModel",
    "GPT2MoeForQuestionAnswering",
    "GPT2MoeForSequenceClassification",
    "GPT2MoeForTokenClassification",
    "GPT2MoeLMHeadModel",
    "GPT2MoeModel",
    "GPT2MoePreTrainedModel",
]
