"""Tiny checkpoints of types that moeify does not know by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer

import moeify

DEMO = Path(moeify.__file__).parent / "demo"
VOCABULARY = 2048  # the shipped tokenizer's


def save_seed_oss(folder: Path, head: str = "ForCausalLM", **options: Any) -> Path:
    return save_decoder(folder, f"SeedOss{head}", **{"max_position_embeddings": 256, "head_dim": 16, **options})


def save_decoder(folder: Path, class_name: str, **options: Any) -> Path:
    """A small decoder of any class whose parts are named as Llama's, no norm or bias as it was made."""
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            **options,
        }
    )
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.3 * parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if "norm" in name else 0.0, spread)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "gpt2").save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
