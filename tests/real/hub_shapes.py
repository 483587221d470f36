"""Dense checkpoints with random weights whose files look like those of well-known repositories."""

from .hub_shapes_bert import bert_base_uncased_like, sentence_encoder_like
from .hub_shapes_gpt2 import gpt2_like
from .hub_shapes_qwen import qwen_like

__all__ = ["bert_base_uncased_like", "gpt2_like", "qwen_like", "sentence_encoder_like"]
