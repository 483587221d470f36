"""What BERT-MoE and GPT-2-MoE models have in common beside what their dense classes give them.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from .moe_layers import default_experts_implementation


class GuardedLayer(nn.Module):
    """A layer with experts, in whose place a checkpoint may hold a guard.

    The guard is one element under the name of the dense layer's feed-forward weight. A dense class
    that is given the checkpoint stops at its shape, where it would only warn of weights that are
    missing and draw them at random. Here it means nothing.
    """

    guard: ClassVar[str]
    """The guard's name within the layer."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + self.guard, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MoePreTrainedModel(PreTrainedModel):
    """What every model does, whatever its dense class; it comes before that one's base class."""

    moe_config_class: ClassVar[type]
    guard: ClassVar[str]
    """The guard's name within the base model, with `{layer}` for the layer's number."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "moe_config_class"):
            # Each dense class holds its own configuration class, which would be inherited first.
            cls.config_class = cls.moe_config_class
            _name_beside_dense(cls)

    def __init__(self, config: Any) -> None:
        config.check_experts(config.num_hidden_layers)
        super().__init__(config)
        if guard := self._guard():
            # Other tools leave out whatever matches: no dense layer's weight may.
            ignored = self._keys_to_ignore_on_load_unexpected or ()
            escaped = guard.replace(".", r"\.")
            self._keys_to_ignore_on_load_unexpected = [*ignored, rf"(^|\.){escaped}$"]

    def _guard(self) -> str | None:
        """The guard's name within the base model; None where no layer holds experts."""
        layers = range(self.config.num_hidden_layers)
        first = next((layer for layer in layers if self.config.is_moe_layer(layer)), None)
        return None if first is None else self.guard.format(layer=first)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers finds out by reading the source and keeps the answer on the class, where a
        # dense class that was asked before would hand its "no" down.
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Choose the implementation of the experts, by machine where the user left it open."""
        requested_experts = default_experts_implementation(requested_experts)
        return super().get_correct_experts_implementation(requested_experts)

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
