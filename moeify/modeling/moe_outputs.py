"""What the MoE models return: the dense model's outputs, with the router's logits and losses.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import modeling_outputs as dense
from transformers.utils.generic import ModelOutput

from .moe_layers import balance_loss, token_mask, z_loss
from .moe_pooling import generation_mask, pooling_arguments


@dataclass
class RouterOutput:
    """What an MoE model returns beside the fields of the dense model's output.

    `aux_loss` is the balance loss before its coefficient, a scalar; `router_logits` holds [N, E]
    for each MoE layer. Both are None unless `output_router_logits` is set.
    """

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class MoeModelOutputWithPooling(RouterOutput, dense.BaseModelOutputWithPoolingAndCrossAttentions):
    """`BaseModelOutputWithPoolingAndCrossAttentions` with the router's part."""


@dataclass
class MoeModelOutputWithPast(RouterOutput, dense.BaseModelOutputWithPastAndCrossAttentions):
    """`BaseModelOutputWithPastAndCrossAttentions` with the router's part."""


@dataclass
class MoeCausalLMOutput(RouterOutput, dense.CausalLMOutputWithCrossAttentions):
    """`CausalLMOutputWithCrossAttentions` with the router's part."""


@dataclass
class MoeMaskedLMOutput(RouterOutput, dense.MaskedLMOutput):
    """`MaskedLMOutput` with the router's part."""


@dataclass
class MoeNextSentencePredictorOutput(RouterOutput, dense.NextSentencePredictorOutput):
    """`NextSentencePredictorOutput` with the router's part."""


@dataclass
class MoeSequenceClassifierOutput(RouterOutput, dense.SequenceClassifierOutput):
    """`SequenceClassifierOutput` with the router's part."""


@dataclass
class MoeSequenceClassifierOutputWithPast(RouterOutput, dense.SequenceClassifierOutputWithPast):
    """`SequenceClassifierOutputWithPast` with the router's part."""


@dataclass
class MoeMultipleChoiceOutput(RouterOutput, dense.MultipleChoiceModelOutput):
    """`MultipleChoiceModelOutput` with the router's part."""


@dataclass
class MoeTokenClassifierOutput(RouterOutput, dense.TokenClassifierOutput):
    """`TokenClassifierOutput` with the router's part."""


@dataclass
class MoeQuestionAnsweringOutput(RouterOutput, dense.QuestionAnsweringModelOutput):
    """`QuestionAnsweringModelOutput` with the router's part."""


Forward = Callable[..., Any]


def record_router(output_class: type[ModelOutput]) -> Callable[[Forward], Forward]:
    """Give a base model's inherited `forward` the argument `output_router_logits`.

    transformers' own recording collects the logits; this puts them into `output_class`, and into
    the dict `router_record` that a head passes along, with the mask of the tokens that count.
    Where whole sequences are routed, it tells the layers what tokens they are made of.
    """

    def decorate(forward: Forward) -> Forward:
        names = list(inspect.signature(forward).parameters)[1:]

        @wraps(forward)
        def wrapper(
            self: Any,
            *args: Any,
            output_router_logits: bool | None = None,
            return_dict: bool | None = None,
            router_record: dict[str, Any] | None = None,
            **kwargs: Any,
        ) -> Any:
            wanted = _default(output_router_logits, self.config.output_router_logits)
            given = dict(zip(names, args, strict=False)) | kwargs
            if self.config.route_by == "sequence":
                kwargs |= pooling_arguments(given)
            outputs = forward(self, *args, output_router_logits=wanted, return_dict=True, **kwargs)
            if router_record is not None and wanted:
                router_record["router_logits"] = outputs["router_logits"]
                mask = kwargs.get("router_mask")
                router_record["attention_mask"] = given.get("attention_mask") if mask is None else mask
            outputs = output_class(**outputs)
            return outputs if _default(return_dict, self.config.return_dict) else outputs.to_tuple()

        return _with_router_argument(wrapper, forward, output_class)

    return decorate


def add_router_losses(output_class: type[ModelOutput]) -> Callable[[Forward], Forward]:
    """Give a head's inherited `forward` the argument `output_router_logits` and the losses.

    When it is set, here or in the config, the result carries `router_logits` and `aux_loss`, and
    a loss gains `router_aux_loss_coef` * balance loss + `router_z_loss_coef` * z-loss.
    """

    def decorate(forward: Forward) -> Forward:
        @wraps(forward)
        def wrapper(
            self: Any,
            *args: Any,
            output_router_logits: bool | None = None,
            return_dict: bool | None = None,
            **kwargs: Any,
        ) -> Any:
            record: dict[str, Any] = {}
            # Heads hand unknown keywords to their base model, which fills the record.
            outputs = forward(
                self,
                *args,
                output_router_logits=output_router_logits,
                router_record=record,
                return_dict=True,
                **kwargs,
            )
            outputs = output_class(**outputs)
            if record.get("router_logits"):
                _apply_router_losses(self.config, outputs, **record)
            return outputs if _default(return_dict, self.config.return_dict) else outputs.to_tuple()

        return _with_router_argument(wrapper, forward, output_class)

    return decorate


def add_router_mask(prepare: Forward) -> Forward:
    """Have an inherited `prepare_inputs_for_generation` tell which tokens of a step are real.

    With a static cache `generate` hands on a mask of another shape, which does not say; a model
    that routes whole sequences gets `router_mask` [B, S] beside it.
    """

    @wraps(prepare)
    def wrapper(self: Any, input_ids: Tensor, *args: Any, attention_mask: Any = None, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(self, input_ids, *args, attention_mask=attention_mask, **kwargs)
        if self.config.route_by == "sequence" and getattr(attention_mask, "ndim", 2) == 2:
            embedded = inputs.get("inputs_embeds")
            tokens = inputs["input_ids"] if embedded is None else embedded
            inputs["router_mask"] = generation_mask(attention_mask, tokens)
        return inputs

    return wrapper


def _apply_router_losses(config: Any, outputs: Any, router_logits: tuple[Tensor, ...], attention_mask: Any) -> None:
    mask = token_mask(attention_mask, router_logits[0].shape[0])
    balance = balance_loss(router_logits=router_logits, top_k=config.num_experts_per_tok, mask=mask)
    # GPT-2's double heads may have a loss for the choice alone.
    name = "mc_loss" if outputs.loss is None and "mc_loss" in outputs else "loss"
    loss = getattr(outputs, name)
    if loss is not None:
        extra = config.router_aux_loss_coef * balance
        if config.router_z_loss_coef:
            extra = extra + config.router_z_loss_coef * z_loss(router_logits=router_logits, mask=mask)
        setattr(outputs, name, loss + extra.to(loss.device))
    outputs.aux_loss = balance
    outputs.router_logits = router_logits


def _default(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value


def _with_router_argument(wrapper: Forward, forward: Forward, output_class: type[ModelOutput]) -> Forward:
    """Show the new argument, which `generate` checks its keywords against, and what comes back."""
    signature = inspect.signature(forward)
    *named, keywords = signature.parameters.values()
    new = inspect.Parameter(
        "output_router_logits", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
    )
    returned = tuple | output_class
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*named, new, keywords], return_annotation=returned
    )
    shown = {new.name: new.annotation, "return": returned}
    wrapper.__annotations__ = forward.__annotations__ | shown
    return wrapper
