"""Configuration of BERT with a mixture of experts in place of the feed-forward network."""

from typing import Any, ClassVar

from transformers import BertConfig

from .configuration_moe import MoeOptions, expert_parallel_plan


class BertMoeConfig(BertConfig, MoeOptions):
    """All keys of `BertConfig`, and those of `MoeOptions`.

    Raises:
        ValueError: for a top-k above the number of experts, a layer out of range and the like.
    """

    model_type = "bert_moe"
    keys_to_ignore_at_inference: ClassVar = ["aux_loss", "router_logits"]
    _auto_class = "AutoConfig"
    base_model_tp_plan: ClassVar = {
        "encoder.layer.*.attention.self.query": "colwise",
        "encoder.layer.*.attention.self.key": "colwise",
        "encoder.layer.*.attention.self.value": "colwise",
        "encoder.layer.*.attention.output.dense": "rowwise",
        "encoder.layer.*.moe.experts.up_proj": "colwise",
        "encoder.layer.*.moe.experts.up_proj_bias": "rowwise",
        "encoder.layer.*.moe.experts.down_proj": "rowwise",
        "encoder.layer.*.moe.experts": "moe_tp_experts",
        "encoder.layer.*.intermediate.dense": "colwise",
        "encoder.layer.*.output.dense": "rowwise",
    }
    base_model_ep_plan: ClassVar = expert_parallel_plan("encoder.layer.*.moe.experts")

    # Without moeify installed, AutoTokenizer has no entry for this model_type and asks the config.
    tokenizer_class: str | None = "BertTokenizer"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_experts(self.num_hidden_layers)


__all__ = ["BertMoeConfig"]
