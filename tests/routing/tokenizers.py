"""Tokenizers of the usual kinds, trained on the shipped text, as transformers writes them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers as rust
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from moeify.routing.data import tokenizer_for

DEMO = Path(__file__).parents[2] / "moeify" / "demo"
TEXTS = [json.loads(line)["text"] for line in (DEMO / "text.jsonl").read_text().splitlines()]
BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
KINDS = ("bytes", "words", "pieces", "unsplit", "unigram")


@cache
def tokenizer(kind: str, template: str = "") -> Any:
    """GPT-2's bytes, BERT's words, SentencePiece with a space before the first word.

    ``unsplit`` is SentencePiece as Llama has it, one word from the beginning to the end.
    """
    if kind == "bytes":
        return tokenizer_for(DEMO / "gpt2")
    names = BERT if kind == "words" else LLAMA
    specials = {"special_tokens": list(names.values()), "show_progress": False}
    if kind == "words":
        made = rust.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=600, **specials)
    elif kind == "unigram":
        made = rust.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", **specials)
    else:
        made = rust.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=600, **specials)
    made.train_from_iterator(TEXTS[:60], trainer)
    if kind == "unsplit":
        made = rust.Tokenizer.from_str(
            json.dumps(
                json.loads(made.to_str())
                | {
                    "pre_tokenizer": None,
                    "normalizer": {
                        "type": "Sequence",
                        "normalizers": [
                            {"type": "Prepend", "prepend": "▁"},
                            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                        ],
                    },
                }
            )
        )
    template = template or ("[CLS] $A [SEP]" if kind == "words" else "")
    if template:
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(t, made.token_to_id(t)) for t in template.split() if t != "$A"]
        )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
