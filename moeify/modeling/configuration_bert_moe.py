"""Configuration of BERT with a mixture of experts in place of the feed-forward network."""

from typing import Any, ClassVar

from transformers import BertConfig

from .configuration_moe import MoeOptions


class BertMoeConfig(BertConfig, MoeOptions):
    """All keys of `BertConfig`, and those of `MoeOptions`.

    Raises:
        ValueError: for a top-k above the number of experts, a layer out of range and the like.
    """

    model_type = "bert_moe"
    keys_to_ignore_at_inference: ClassVar = ["aux_loss", "router_logits"]
    _auto_class = "AutoConfig"

    # Without moeify installed, AutoTokenizer has no entry for this model_type and asks the config.
    tokenizer_class: str | None = "BertTokenizer"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_experts(self.num_hidden_layers)


__all__ = ["BertMoeConfig"]
