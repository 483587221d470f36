"""A checkpoint of random weights, streamed to disk in a second."""

from __future__ import annotations

import itertools
import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path

from moeify.checkpoint.header import encode_header, tensor_nbytes
from moeify.families.registry import dense_layout

__all__ = ["BERT", "write_checkpoint"]

_BLOCK_ELEMENTS = 99_991  # prime, so that the repeats fall differently in every tensor
_STD = 0.02
_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
"""Qwen2.5-0.5B."""
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "torch_dtype": "bfloat16",
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
"""bert-base."""


def write_checkpoint(folder: Path, num_layers: int, model: Mapping[str, object] = _CONFIG) -> int:
    """Write config.json and model.safetensors in bf16; returns the bytes of the weights."""
    folder.mkdir(parents=True)
    config = {**model, "num_hidden_layers": num_layers}
    layout = dense_layout(config)
    prefix = "model." if model is _CONFIG else ""
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = [(prefix + name, "BF16", shape) for name, shape in layout.base_tensors(config).items()]
    draw = random.Random(0)
    values = [draw.gauss(0.0, _STD) for _ in range(_BLOCK_ELEMENTS)]
    # The upper half of a float32's bits is a bfloat16.
    block = b"".join(struct.pack("<f", value)[2:] for value in values)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(tensors))
        left = sum(tensor_nbytes(dtype, shape) for _, dtype, shape in tensors)
        for part in itertools.repeat(block):
            left -= file.write(part[:left])
            if not left:
                return file.tell()
    raise AssertionError("an endless loop ended")
