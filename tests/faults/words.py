"""A tokenizer of 64 tokens, with the files that published ones have."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"]


def write_tokenizer(folder: Path, family: str) -> None:
    """Write tokenizer.json and tokenizer_config.json into ``folder``."""
    words = [*SPECIAL, "the", "cat", "sat", "on", "mat", *map(str, range(10))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "eos_token": "<|endoftext|>",
        "mask_token": "[MASK]",
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
