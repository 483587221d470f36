"""Parts of random checkpoints: weights from a seed, and tokenizers of a few hundred tokens."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_BERT_WORDS = "the of and to in he that was for it with as his on be at by had not are but from"
_BYTE_MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("an", "d")]


class Draw:
    """Random tensors from one seed, scaled so that deep activations neither vanish nor explode."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def matrix(self, *shape: int) -> torch.Tensor:
        return self._normal(shape, shape[-1] ** -0.5)

    def bias(self, size: int) -> torch.Tensor:
        return self._normal((size,), 0.1)

    def norm(self, size: int) -> torch.Tensor:
        return 1 + self._normal((size,), 0.2)

    def _normal(self, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(self._dtype)


def bert_vocabulary() -> list[str]:
    """A WordPiece vocabulary in the order of bert-base-uncased: specials, characters, words."""
    specials = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = list(string.punctuation + string.digits + string.ascii_lowercase)
    pieces = [f"##{character}" for character in string.digits + string.ascii_lowercase]
    return specials + characters + _BERT_WORDS.split() + pieces


def write_bert_tokenizer(folder: Path) -> None:
    """Write vocab.txt and tokenizer_config.json."""
    lines = "".join(f"{token}\n" for token in bert_vocabulary())
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    config = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    write_json(folder / "tokenizer_config.json", config)


def write_byte_tokenizer(folder: Path, tokenizer_class: str, specials: list[str]) -> int:
    """Write vocab.json, merges.txt, tokenizer.json and its config; returns the number of tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + ["".join(pair) for pair in _BYTE_MERGES]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_BYTE_MERGES))
    tokenizer.model.save(str(folder))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "eos_token": specials[0],
        "model_max_length": 1024,
        "pad_token": specials[0],
        "tokenizer_class": tokenizer_class,
        "unk_token": specials[0],
    }
    write_json(folder / "tokenizer_config.json", config)
    return int(tokenizer.get_vocab_size())


def write_json(path: Path, document: Any) -> None:
    """Write JSON as `save_pretrained` formats it."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
