"""Configuration of GPT-2 with a mixture of experts in place of the feed-forward network."""

from typing import Any, ClassVar

from transformers import GPT2Config

from .configuration_moe import MoeOptions, expert_parallel_plan


class GPT2MoeConfig(GPT2Config, MoeOptions):
    """All keys of `GPT2Config`, and those of `MoeOptions`.

    Raises:
        ValueError: for a top-k above the number of experts, a layer out of range and the like.
    """

    model_type = "gpt2_moe"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "aux_loss", "router_logits"]
    _auto_class = "AutoConfig"
    # Attention stays whole: transformers splits no `Conv1D`.
    base_model_tp_plan: ClassVar = {
        "h.*.mlp.experts.up_proj": "rowwise",
        "h.*.mlp.experts.up_proj_bias": "rowwise",
        "h.*.mlp.experts.down_proj": "colwise",
        "h.*.mlp.experts": "moe_tp_experts",
    }
    base_model_ep_plan: ClassVar = expert_parallel_plan("h.*.mlp.experts")

    # Without moeify installed, AutoTokenizer has no entry for this model_type and asks the config.
    tokenizer_class: str | None = "GPT2Tokenizer"

    @property
    def ffn_size(self) -> int:
        """F, the width of one expert: `n_inner`, or 4 H where the checkpoint leaves it null."""
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_experts(self.n_layer)


__all__ = ["GPT2MoeConfig"]
