"""What the trainings behind docs/measured/evidence.md start from: text, dense models, mixtures made of them."""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from train_demo import Recipe, blocks, train
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real import checkpoints, corpora

import moeify
from moeify.checkpoint.replacing import replacing
from moeify.families.registry import OWN
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, read_blocks, tokenizer_for
from moeify.routing.loading import load_model, model_class
from moeify.warming.session import some_blocks

DOMAINS, SEQ_LEN = ("english", "german", "logs", "python"), 128
PASSAGES = {"python": 2600}
"""There is three times as much Python as English."""
HELD_OUT = 0.04
"""Twice: once to choose a learning rate on, once to report."""
APART = 1000
"""Passages, about 280,000 tokens, to fit and warm up routers on and to score experts on."""
TOP_2 = {"num_experts": 4, "top_k": 2}
ARMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense, twice as wide": {},
    "dense, on 70 % of the text": {},
    "4 copies, top-1": {"num_experts": 4, "top_k": 1},
    "4 copies, top-2": TOP_2,
    "8 copies, top-2": {"num_experts": 8, "top_k": 2},
    "4 slices of 4": {"num_experts": 4, "top_k": 1, "slices": 4},
    "8 slices of 4": {"num_experts": 4, "top_k": 1, "slices": 8},
    "4 slices of 4, one shared": {"num_experts": 4, "top_k": 1, "slices": 4, "shared": 1},
    "4 copies, 2 null": {**TOP_2, "null_experts": 2},
    "4 copies redrawn by half": {**TOP_2, "reinit": 0.5},
    "4 experts from scratch": TOP_2,
}
"""What is trained, as options of ``moeify.upcycle``; all mixtures are of one class, which has slices."""
READ_AGAIN = {"dense, on 70 % of the text": 0.7}
"""Parts of its tokens that an arm reads for the first time; the others are the same text again."""


@dataclass(frozen=True)
class Text:
    """Blocks to train on, to choose learning rates on and to report losses of."""

    train: Blocks
    tune: Blocks
    test: Blocks

    def beginning(self, tokens: int) -> "Text":
        """The same with the first ``tokens`` to train on."""
        return replace(self, train=self.train.take(np.arange(tokens // SEQ_LEN)))


def text(tokens: int, measured: int, apart: Path | None = None) -> Text:
    """The same text for all runs on as many tokens, and about ``measured`` of each held-out part.

    Its order in training comes with the seed of a run. ``apart`` is a file for ``APART`` passages that are in no part.
    """
    most = tokens // 20  # passages have about 200 tokens
    rows = [row for name in DOMAINS for row in corpora.domains([name], min(most, PASSAGES.get(name, most)))]
    lines = [json.dumps(rows[n]) + "\n" for n in np.random.default_rng(0).permutation(len(rows))]
    if apart is not None:
        # Other processes may be reading it, or write the same.
        with FileLock(apart.with_suffix(".lock")), replacing(apart) as partial:
            partial.write_text("".join(lines[:APART]), encoding="utf-8")
        lines = lines[APART:]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "text.jsonl")
        path.write_text("".join(lines), encoding="utf-8")
        config = DataConfig(dataset=str(path), domain_column="domain")
        found = read_blocks(config, tokenizer_for(checkpoints.demo_gpt2()), SEQ_LEN)
    rest, test = found.split(HELD_OUT)
    rest, tune = rest.split(HELD_OUT)
    count = tokens // SEQ_LEN
    if count > len(rest):
        raise SystemExit(f"there are {len(rest) * SEQ_LEN:,} tokens to train on, not {tokens:,}")
    chosen = np.random.default_rng(1).permutation(len(rest))[:count]
    parts = (some_blocks(part, measured, 0) for part in (tune, test))
    return Text(rest.take(chosen), *parts)


def base(name: str, work: Path) -> Path:
    """The dense model to start from, in ``work``: the shipped GPT-2, or a Qwen3 that is trained here once."""
    folder = work / name
    with FileLock(work / f"{name}.lock"):
        if not (folder / "config.json").exists():
            {"gpt2": _copy_gpt2, "qwen3": _train_qwen3}[name](folder)
    return folder


def _copy_gpt2(folder: Path) -> None:
    """The shipped GPT-2 with its activation as one operation, which saves a sixth of a training's time."""
    partial = folder.with_suffix(".partial")
    shutil.copytree(checkpoints.demo_gpt2(), partial, dirs_exist_ok=True)
    config = json.loads((partial / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps({**config, "activation_function": "gelu_pytorch_tanh"}))
    partial.rename(folder)


def _train_qwen3(folder: Path) -> None:
    """A Qwen3 of two million parameters, on the text that the shipped GPT-2 was trained on, with its tokenizer."""
    tokenizer, recipe = tokenizer_for(checkpoints.demo_gpt2()), Recipe()
    texts = [row["text"] for name in ("english", "jargon", "jargon") for row in corpora.domains([name], 10**6)]
    set_seed(recipe.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=recipe.vocabulary,
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=5,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=32,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    train(model, blocks(tokenizer, texts, recipe.context), recipe, log_every=500)
    model.config.use_cache = True
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def start(arm: str, dense: Path, scratch: Path, seed: int) -> PreTrainedModel:
    """The model of an arm before its training; what is drawn comes with the seed."""
    if arm == "dense, twice as wide":
        return load_model(_widened(dense, scratch / "wide", seed))
    if not ARMS[arm]:
        return load_model(dense)
    moeify.upcycle(dense, scratch / "moe", seed=seed, arch=OWN, **ARMS[arm])
    if "scratch" not in arm:
        return load_model(scratch / "moe")
    config = AutoConfig.from_pretrained(scratch / "moe")
    set_seed(seed)
    model: PreTrainedModel = model_class(config)(config)
    return model


def _widened(dense: Path, folder: Path, seed: int) -> Path:
    """The dense model with as many new neurons, whose outputs start at zero: the same function."""
    draw = torch.Generator().manual_seed(seed)
    folder.mkdir()
    for path in dense.iterdir():
        if path.suffix in (".json", ".txt"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((dense / "config.json").read_text())
    key = "n_inner" if config["model_type"] == "gpt2" else "intermediate_size"
    config[key] = 2 * (config[key] or 4 * config["n_embd"])
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for path in dense.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            tensors[name] = _wider(name, tensor, draw) if ".mlp." in name else tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _wider(name: str, tensor: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """A feed-forward tensor of the widened model; GPT-2's weights lie [in, out], others [out, in]."""
    down = "c_proj" in name or "down_proj" in name
    if down and tensor.dim() == 1:
        return tensor
    across = 0 if down == ("c_" in name) else tensor.dim() - 1
    new = torch.zeros_like(tensor) if down else tensor.std() * torch.randn(tensor.shape, generator=draw)
    return torch.cat([tensor, new], across)


def flops_per_token(model: PreTrainedModel, active: int) -> int:
    """Of both passes: 6 for each parameter that a token meets, and attention over a block."""
    config: Any = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * SEQ_LEN
    return 6 * active + attention
