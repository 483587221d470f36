"""What every one of moeify's own MoE models does, beside what its dense class gives it.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.
"""

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from .moe_batch import CURRENT, RoutingBatch
from .moe_experts import Networks, Outline
from .moe_families import MoeFamily
from .moe_layers import MoeFeedForward, default_experts_implementation
from .moe_pooling import SequencePool
from .moe_routing import NullExperts, TopKRouting


class MoeLayer(nn.Module):
    """A layer with experts; it comes before the dense layer's class.

    Its router sees the batch through a keyword, so that a recomputed layer sees the batch of its first time.

    In the place of the dense network's first weight a checkpoint may hold a guard, one element. A dense class
    that is given the checkpoint stops at its shape, where it would only warn of weights that are
    missing and draw them at random. Here it means nothing.
    """

    guard: ClassVar[str]
    """The guard's name within the layer."""

    cache_place: ClassVar[int | None]
    """Which argument of the dense layer's `forward` is the cache; None where it has none."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer with the batch at hand."""
        batch = CURRENT.get()
        if batch is not None:
            kwargs["routing_batch"] = batch
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, routing_batch: RoutingBatch | None = None, **kwargs: Any) -> Any:
        """What the dense layer computes, with its mixture."""
        if routing_batch is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        cache = kwargs.get("past_key_values")
        if cache is None and self.cache_place is not None and len(args) > self.cache_place:
            cache = args[self.cache_place]
        batch = RoutingBatch(
            mask=routing_batch.mask,
            starts=routing_batch.starts,
            cache=cache,
            logits=routing_batch.logits,
            chosen=routing_batch.chosen,
        )
        token = CURRENT.enter(batch)
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            CURRENT.leave(token)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + self.guard, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def outlined(module_class: type[nn.Module]) -> Callable[..., nn.Module]:
    """What makes a module of this class without memory."""

    def make(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.device("meta"):
            return module_class(*args, **kwargs)

    return make


class ModelWithExperts(PreTrainedModel):
    """A model that holds `Experts`: how they are drawn, and what runs them."""

    _keep_in_fp32_modules_strict: ClassVar = ["e_score_correction_bias"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TopKRouting) and module.e_score_correction_bias is not None:
            init.zeros_(module.e_score_correction_bias)
        if isinstance(module, NullExperts):
            for parameter in (module.scale, module.constant):
                if parameter is not None:
                    init.zeros_(parameter)
        if not isinstance(module, Networks):
            return
        std, down = self.config.initializer_range, (module.down_proj, module.down_proj_bias)
        for (weight, bias), scale in ((module.up, 1.0), (down, self._output_scale())):
            if weight is not None:
                init.normal_(weight, mean=0.0, std=std * scale)
            if bias is not None:
                init.zeros_(bias)

    def _output_scale(self) -> float:
        """What the standard deviation of the last product's weights is multiplied by."""
        return 1.0

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers finds out by reading the source and keeps the answer on the class, where a
        # dense class that was asked before would hand its "no" down.
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Choose the implementation of the experts, by machine where the user left it open."""
        requested_experts = default_experts_implementation(requested_experts)
        return super().get_correct_experts_implementation(requested_experts)


class MoePreTrainedModel(ModelWithExperts):
    """What every model does, whatever its dense class, which it comes before.

    The feed-forward networks of its layers are outlines until `post_init` makes mixtures of them, or fills them.
    """

    moe: ClassVar[MoeFamily]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "moe"):
            _name_beside_dense(cls)

    def post_init(self) -> None:
        """Put mixtures where the config says, and go on as transformers does."""
        if self.base_model is self:
            self.config.check_experts(self.config.num_hidden_layers)
            layers = self.get_submodule(self.moe.layers)
            for number, layer in enumerate(layers):
                if self.config.is_moe_layer(number):
                    self._mix(layer, number)
                else:
                    layer.__class__ = layer.__class__.__mro__[2]
                _fill(layer)
        # Other tools leave out whatever matches: no weight of this class may.
        passed = [rf"(^|\.){re.escape(guard)}$" for guard in [self._guard()] if guard]
        if self.base_model is not self:
            modules = dict(self.named_modules())
            passed += [rf"^{re.escape(path)}\." for path in self.moe.spared if path not in modules]
        self._keys_to_ignore_on_load_unexpected = [*(self._keys_to_ignore_on_load_unexpected or ()), *passed]
        super().post_init()

    def _mix(self, layer: nn.Module, number: int) -> None:
        """Put a mixture in the place of a layer's feed-forward network."""
        config, ffn = self.config, self.moe.ffn
        pool = None
        if config.route_by == "sequence":
            causal = self.moe.causal or getattr(config, "is_decoder", False)
            pool = SequencePool(causal=causal, layer=number, num_layers=config.num_hidden_layers)
        dropout = layer.get_submodule(ffn.dropout) if ffn.dropout else None
        outline = Outline.of(layer, ffn, config.expert_slices, config.shared_slices)
        layer.set_submodule(ffn.down, nn.Identity())
        layer.set_submodule(ffn.block, MoeFeedForward(config, outline, pool=pool, dropout=dropout))
        if hasattr(layer, "chunk_size_feed_forward"):
            layer.chunk_size_feed_forward = 0  # routers see all tokens at once

    def _guard(self) -> str | None:
        """The guard's name within the base model; None where no layer holds experts."""
        layers = range(self.config.num_hidden_layers)
        first = next((layer for layer in layers if self.config.is_moe_layer(layer)), None)
        return None if first is None else f"{self.moe.layers}.{first}.{self.moe.ffn.guard}"

    def _output_scale(self) -> float:
        # As in the dense model, weights that write to the residual stream shrink with depth.
        return 1 / math.sqrt(2 * self.config.num_hidden_layers) if self.moe.ffn.scaled else 1.0

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save as transformers does, with the guard that dense classes stop at."""
        guard = self._guard()
        if guard and not getattr(self, "_hf_peft_config_loaded", False):
            prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
            state_dict = dict(self.state_dict() if state_dict is None else state_dict)
            state_dict[prefix + guard] = torch.zeros(1, dtype=self.dtype)
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)


def _fill(layer: nn.Module) -> None:
    """Give what is left of outlines in a layer memory, which initialisation writes."""
    device = torch.get_default_device()
    for module in layer.modules():
        if any(tensor.is_meta for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            module.to_empty(device=device, recurse=False)


def _name_beside_dense(cls: type[PreTrainedModel]) -> None:
    """Enter a class in transformers' plain dicts of names, beside its dense class.

    They tell Trainer whose labels to shift, and model cards what a model is for; registration with
    the auto classes does not reach them.
    """
    dense = next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))
    dense_type = getattr(dense.config_class, "model_type", None)  # type: ignore[attr-defined]
    for name, mapping in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES") and mapping.get(dense_type) == dense.__name__:
            mapping.setdefault(cls.config_class.model_type, cls.__name__)
