"""What the MoE models return: the dense model's outputs, with the router's logits and losses.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, get_args

from torch import Tensor
from transformers.utils.generic import ModelOutput

from .moe_batch import CURRENT, RoutingBatch
from .moe_layers import balance_loss, token_mask, z_loss
from .moe_pooling import generation_mask, what_is_pooled


@dataclass
class RouterOutput:
    """What an MoE model returns beside the fields of the dense model's output.

    `aux_loss` is the balance loss before its coefficient, a scalar; `router_logits` holds [N, E]
    for each MoE layer. Both are None unless `output_router_logits` is set.
    """

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle would look for the class by its name.
        dense = type(self).__mro__[2]
        return _restored, (dense, {field.name: getattr(self, field.name) for field in fields(self)})


_CLASSES: dict[type[ModelOutput], type[ModelOutput]] = {}


def with_router(dense: type[ModelOutput]) -> type[ModelOutput]:
    """`dense` with the fields of `RouterOutput`, the same class every time."""
    if issubclass(dense, RouterOutput):
        return dense
    if dense not in _CLASSES:
        words = {"__module__": __name__, "__doc__": f"`{dense.__name__}` with the router's part."}
        _CLASSES[dense] = dataclass(type(f"Moe{dense.__name__}", (RouterOutput, dense), words))
    return _CLASSES[dense]


def _restored(dense: type[ModelOutput], values: dict[str, Any]) -> ModelOutput:
    return with_router(dense)(**values)


Forward = Callable[..., Any]


def record_router(forward: Forward) -> Forward:
    """Give a base model's inherited `forward` the argument `output_router_logits`.

    It opens the batch that the routers see, or fills that of a head, and puts what they tell into the output.
    """
    names = list(inspect.signature(forward).parameters)[1:]

    @wraps(forward)
    def wrapper(
        self: Any, *args: Any, output_router_logits: bool | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        batch = CURRENT.get()
        alone = batch is None  # a head counts the losses itself
        if alone:
            batch = _asked(self.config, output_router_logits, kwargs)
        if self.moe.behind_padding and kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = _behind_padding(self.config, kwargs["position_ids"])
        given = dict(zip(names, args, strict=False)) | kwargs
        if self.config.route_by == "sequence":
            batch.mask, batch.starts = what_is_pooled(given, batch.mask)
        batch.attention_mask = given.get("attention_mask") if batch.mask is None else batch.mask
        outputs = _run(forward, batch, self, *args, **kwargs)
        if batch.logits is not None:
            outputs.router_logits = tuple(batch.logits)
            if alone and batch.logits:
                outputs.aux_loss = _balance(self.config, batch)
        return outputs if _default(return_dict, self.config.return_dict) else outputs.to_tuple()

    return _with_router_argument(wrapper, forward)


def _behind_padding(config: Any, positions: Tensor) -> Tensor:
    """The positions that the dense class counts; vLLM hands its backend for mixtures those from 0 on."""
    if getattr(config, "_attn_implementation", None) != "vllm":
        return positions
    first = config.pad_token_id + 1
    return positions + first * (positions.amin() < first).to(positions.dtype)


def add_router_losses(forward: Forward) -> Forward:
    """Give a head's inherited `forward` the argument `output_router_logits` and the losses.

    When it is set, here or in the config, the result carries `router_logits` and `aux_loss`, and
    a loss gains `router_aux_loss_coef` * balance loss + `router_z_loss_coef` * z-loss.
    """

    @wraps(forward)
    def wrapper(
        self: Any, *args: Any, output_router_logits: bool | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        batch = _asked(self.config, output_router_logits, kwargs)
        outputs = _run(forward, batch, self, *args, **kwargs)
        if batch.logits:
            _apply_router_losses(self.config, outputs, batch)
        return outputs if _default(return_dict, self.config.return_dict) else outputs.to_tuple()

    return _with_router_argument(wrapper, forward)


def _asked(config: Any, output_router_logits: bool | None, kwargs: dict[str, Any]) -> RoutingBatch:
    """A batch as the caller wants it; the keyword that the dense classes do not know goes into it."""
    wanted = _default(output_router_logits, config.output_router_logits)
    return RoutingBatch(mask=kwargs.pop("router_mask", None), logits=[] if wanted else None)


def _run(forward: Forward, batch: RoutingBatch, *args: Any, **kwargs: Any) -> Any:
    """The dense output of `forward` in our class, while the routers see `batch`."""
    token = CURRENT.enter(batch)
    try:
        outputs = forward(*args, return_dict=True, **kwargs)
    finally:
        CURRENT.leave(token)
    return with_router(type(outputs))(**outputs)


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


def _balance(config: Any, batch: RoutingBatch) -> Tensor:
    """The balance loss of the tokens that are real."""
    return balance_loss(
        router_logits=batch.logits,
        top_k=config.num_experts_per_tok,
        mask=token_mask(batch.attention_mask, batch.logits[0].shape[0]),
        slices=config.expert_slices,
        chosen=batch.chosen,
        nulls=config.null_experts,
    )


def _apply_router_losses(config: Any, outputs: Any, batch: RoutingBatch) -> None:
    balance = _balance(config, batch)
    # GPT-2's double heads may have a loss for the choice alone.
    name = "mc_loss" if outputs.loss is None and "mc_loss" in outputs else "loss"
    loss = getattr(outputs, name)
    if loss is not None:
        extra = config.router_aux_loss_coef * balance
        if config.router_z_loss_coef:
            mask = token_mask(batch.attention_mask, batch.logits[0].shape[0])
            z = z_loss(router_logits=batch.logits, mask=mask, slices=config.expert_slices)
            extra = extra + config.router_z_loss_coef * z
        setattr(outputs, name, loss + extra.to(loss.device))
    outputs.aux_loss = balance
    outputs.router_logits = tuple(batch.logits)


def _default(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value


def _with_router_argument(wrapper: Forward, forward: Forward) -> Forward:
    """Show the new argument, which `generate` checks its keywords against, and what comes back."""
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    new = inspect.Parameter(
        "output_router_logits", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
    )
    last = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    annotation = signature.return_annotation
    said = [kind for kind in get_args(annotation) or (annotation,) if inspect.isclass(kind)]
    returned: Any = tuple
    for kind in said:
        if issubclass(kind, ModelOutput):  # made now, and not while a trace watches
            returned = returned | with_router(kind)
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters[:last], new, *parameters[last:]], return_annotation=returned
    )
    shown = {new.name: new.annotation, "return": returned}
    wrapper.__annotations__ = forward.__annotations__ | shown
    return wrapper
