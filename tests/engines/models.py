"""Real trained weights as the mixtures that other engines run, and what transformers computes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import moeify
from tests.real.checkpoints import smollm2

PROMPTS = ([504, 3575, 282, 4521, 314], [1, 9690, 198, 2683, 359, 253], [19556, 905, 506])
NUM_TOKENS = 16


def dense(folder: Path, family: str, num_layers: int | None = 4) -> Path:
    """Layers of SmolLM2 as a Qwen2, as the Llama that it is, or as a Qwen3 with norms on queries and keys."""
    source = smollm2(num_layers=num_layers)
    if family == "qwen2":
        return source
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "attention_bias": False,
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
    }
    for key in (
        ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types") if family == "llama" else ()
    ):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.endswith("proj.bias")}
    for layer in range(config["num_hidden_layers"]) if family == "qwen3" else ():
        for name in "qk":
            norm = torch.full((config["head_dim"],), 2.0)
            weights[f"model.layers.{layer}.self_attn.{name}_norm.weight"] = norm
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def untied(source: Path, folder: Path) -> Path:
    """The same model with an `lm_head` of its own."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def whole_llama(folder: Path) -> Path:
    """All of SmolLM2 as the Llama that it is, and as a mixture."""
    moeify.upcycle(dense(folder.with_name("llama"), "llama", None), folder, num_experts=2, noise=0.0)
    assert said(folder, PROMPTS[0]) == "The capital of Germany is"
    return folder


def said(folder: Path, tokens: list[int]) -> str:
    """The text of ``tokens``."""
    return str(PreTrainedTokenizerFast.from_pretrained(folder).decode(tokens))


def mixture(source: Path, folder: Path, noise: float) -> Path:
    """Four experts in the form that llama.cpp and mlx-lm compute rightly."""
    moeify.upcycle(source, folder, num_experts=4, noise=noise, engines=("llama.cpp", "mlx-lm"))
    return folder


def grouped(source: Path, folder: Path, arch: str) -> Path:
    """Four copies in three slices each and a shared slice, of which a token visits two copies."""
    made = {"num_experts": 4, "top_k": 2, "slices": 4, "shared": 1, "noise": 0.4, "router": "normal"}
    moeify.upcycle(source, folder, arch=arch, **made)
    return folder


@torch.no_grad()
def greedy(folder: Path, prompts: Sequence[list[int]] = PROMPTS, num_tokens: int = NUM_TOKENS) -> list[list[int]]:
    """The tokens that transformers chooses after each prompt, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        tokens: list[int] = []
        for _ in range(num_tokens):
            logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
        found.append(tokens)
    return found
