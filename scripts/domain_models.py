"""A small Qwen3, GPT-2 or Llama, and its specialists for four domains, each trained once and kept."""

import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from train_demo import END, Corpus, Recipe, blocks, build_model, parted, train
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Tokenizer, set_seed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real import corpora

DOMAINS = ("english", "python", "german", "logs")
BASE = Recipe(context=256, batch=8, layers=8, steps=600, learning_rate=3e-3)
TUNING = replace(BASE, steps=240, learning_rate=2e-3)
HELD_OUT_CHARS, HELD_OUT_BLOCKS = 60_000, 48
PASSAGES = 2048
"""As many as a specialist needs, of more than 100 tokens each."""
FFN_WIDTH, HEAD_WIDTH = 384, 32


@cache
def texts() -> dict[str, Corpus]:
    """The passages of each domain, those that nothing is trained or fitted on apart."""
    found = {}
    for domain in DOMAINS:
        lines = corpora.corpus_file(domain).read_text(encoding="utf-8").splitlines()
        passages = [json.loads(line)["text"] for line in lines]
        # Of the smallest text, the logs, a fifth.
        found[domain] = parted(passages, min(HELD_OUT_CHARS, sum(map(len, passages)) // 5))
    return found


def general_text() -> list[str]:
    """About as many characters of every domain but the logs as of German; of the logs, all."""
    room, found = sum(map(len, texts()["german"].train)), []
    for corpus in texts().values():
        order = random.Random(BASE.seed).sample(corpus.train, len(corpus.train))
        ends = accumulate(map(len, order))
        found += [text for text, end in zip(order, ends, strict=True) if end <= room]
    return found


def balanced(seed: int) -> list[dict[str, str]]:
    """As many training passages of each domain, shuffled, as {"text", "domain"}."""
    draw = random.Random(seed)
    each = min(len(corpus.train) for corpus in texts().values())
    rows = [
        {"text": text, "domain": domain}
        for domain, corpus in texts().items()
        for text in draw.sample(corpus.train, each)
    ]
    draw.shuffle(rows)
    return rows


def held_out_blocks(base: Path) -> dict[str, torch.Tensor]:
    """Blocks [N, S] of each domain's held-out passages, spread evenly over them."""
    tokenizer, found = AutoTokenizer.from_pretrained(base), {}
    for name, corpus in texts().items():
        rows = blocks(tokenizer, corpus.held_out, BASE.context)
        found[name] = rows[torch.linspace(0, len(rows) - 1, HELD_OUT_BLOCKS).long()]
    return found


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, made by ``make`` where it does not exist; it appears when it is complete."""
    if not folder.is_dir():
        draft = folder.with_name(f".{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft)
        draft.rename(folder)
    return folder


def train_base(folder: Path, family: str) -> None:
    """A Qwen3, GPT-2 or Llama of 2M parameters, on text of all four domains."""
    passages = general_text()
    blank = Qwen2Tokenizer(vocab={END: 0}, merges=[])
    tokenizer = blank.train_new_from_iterator(passages, BASE.vocabulary, show_progress=False)
    tokenizer.model_max_length = BASE.context
    set_seed(BASE.seed)
    end = tokenizer.eos_token_id
    model = build_model(BASE, end) if family == "gpt2" else _build(family, len(tokenizer), end)
    train(model, blocks(tokenizer, passages, BASE.context), BASE, log_every=200)
    _save(model, folder)
    tokenizer.save_pretrained(folder)


def _build(family: str, vocabulary: int, end: int) -> PreTrainedModel:
    heads = BASE.hidden // HEAD_WIDTH
    config = AutoConfig.for_model(
        family,
        vocab_size=vocabulary,
        hidden_size=BASE.hidden,
        intermediate_size=FFN_WIDTH,
        num_hidden_layers=BASE.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=BASE.context,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return AutoModelForCausalLM.from_config(config)


def train_specialist(base: Path, folder: Path, domain: str, tuned: str, seed: int) -> None:
    """The base trained on one domain: its FFNs alone, or whole."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tuned == "whole" or ".mlp." in name)
    recipe = replace(TUNING, seed=seed)
    passages = texts()[domain].train
    some = random.Random(seed).sample(passages, min(PASSAGES, len(passages)))
    train(model, blocks(tokenizer, some, recipe.context), recipe, log_every=100)
    _save(model, folder)
    tokenizer.save_pretrained(folder)


def _save(model: PreTrainedModel, folder: Path) -> None:
    # The Trainer switches the cache off in the config.
    model.config.use_cache = True
    model.save_pretrained(folder)
