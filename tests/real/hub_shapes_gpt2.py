"""A GPT-2 checkpoint with random weights and the tensor names found on the Hub."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .tiny_parts import Draw, write_byte_tokenizer, write_json


def gpt2_like(
    folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, positions: int = 128, seed: int = 0
) -> Path:
    """No `transformer.` prefix, mask buffers in the file, `n_inner` null, no lm_head (tied)."""
    draw = Draw(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_byte_tokenizer(folder, "GPT2Tokenizer", ["<|endoftext|>"])
    tensors = {"wte.weight": draw.matrix(vocabulary, hidden)}
    tensors["wpe.weight"] = draw.matrix(positions, hidden)
    mask = torch.tril(torch.ones(positions, positions))[None, None]
    # Conv1D stores its weights [in, out].
    shapes = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, 4 * hidden),
        "mlp.c_proj": (4 * hidden, hidden),
    }
    for name in [f"h.{layer}" for layer in range(layers)]:
        for norm in ("ln_1", "ln_2"):
            tensors[f"{name}.{norm}.weight"] = draw.norm(hidden)
            tensors[f"{name}.{norm}.bias"] = draw.bias(hidden)
        tensors[f"{name}.attn.bias"] = mask.clone()
        for module, shape in shapes.items():
            tensors[f"{name}.{module}.weight"] = draw.matrix(shape[1], shape[0]).T.contiguous()
            tensors[f"{name}.{module}.bias"] = draw.bias(shape[1])
    tensors |= {"ln_f.weight": draw.norm(hidden), "ln_f.bias": draw.bias(hidden)}
    config = _gpt2_config(hidden, layers, heads, positions, vocabulary)
    write_json(folder / "config.json", config)
    end = {"bos_token_id": vocabulary - 1, "eos_token_id": vocabulary - 1}
    write_json(folder / "generation_config.json", end)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _gpt2_config(hidden: int, layers: int, heads: int, positions: int, vocabulary: int) -> dict[str, Any]:
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": vocabulary - 1,
        "embd_pdrop": 0.1,
        "eos_token_id": vocabulary - 1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": positions,
        "n_embd": hidden,
        "n_head": heads,
        "n_inner": None,
        "n_layer": layers,
        "n_positions": positions,
        "resid_pdrop": 0.1,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": vocabulary,
    }
