"""Texts become the same tokens in slices as in one piece, and long ones become a sample."""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import numpy as np
import pytest

from moeify.routing.config import DataConfig
from moeify.routing.data import pack, read_blocks
from moeify.routing.documents import Document
from moeify.routing.loading import encode
from moeify.routing.tokens import Tokens

from .tokenizers import KINDS, TEXTS, tokenizer

BOOK = "\n".join(TEXTS)  # more than three slices


def tokens_of(made: Any, *texts: str, limit: int | None = None, seq_len: int = 64) -> list[int]:
    documents = Tokens(made, seq_len, limit, seed=0).of(Document(text) for text in texts)
    return list(chain.from_iterable(tokens for tokens, _ in documents))


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.characters = inner, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.inner(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("between", ["\n", "   ", "\r\n\t"])
def test_a_long_text_has_the_tokens_that_it_has_in_one_piece(kind: str, between: str) -> None:
    made, text = tokenizer(kind), between.join(TEXTS[:200])
    assert len(text) > 1 << 16
    whole = encode(made, text)
    end = [] if kind == "words" else [made.eos_token_id]
    assert tokens_of(made, text) == whole + end
    assert tokens_of(made, text, limit=len(whole) + 20_000) == whole + end


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_white_space_loses_nothing_but_a_token_at_a_seam(kind: str) -> None:
    made, text = tokenizer(kind), "".join(BOOK.split())[:150_000]
    if kind == "words":
        text = text.replace(".", "。")  # what BERT cuts words at
    whole = encode(made, text)
    assert abs(len(tokens_of(made, text)) - len(whole)) < 100


@pytest.mark.parametrize(
    ("kind", "template", "expected"),
    [
        ("bytes", "", lambda t, ids: [*ids, t.eos_token_id]),
        ("words", "", lambda t, ids: [t.cls_token_id, *ids, t.sep_token_id]),
        ("pieces", "", lambda t, ids: [*ids, t.eos_token_id]),
        ("pieces", "<s> $A", lambda t, ids: [t.bos_token_id, *ids, t.eos_token_id]),
        ("pieces", "<s> $A </s>", lambda t, ids: [t.bos_token_id, *ids, t.eos_token_id]),
        ("pieces", "$A </s>", lambda t, ids: [*ids, t.eos_token_id]),
    ],
)
def test_every_text_begins_and_ends_once(kind: str, template: str, expected: Any) -> None:
    made = tokenizer(kind, template)
    for text in ("The bee and the ox.", BOOK):
        assert tokens_of(made, text) == expected(made, encode(made, text, special=False))
    if kind == "pieces":
        marked = tokens_of(made, "<s>The bee and the ox.</s>")
        assert marked.count(made.bos_token_id) == marked.count(made.eos_token_id) == 1


def test_a_text_that_is_too_long_gives_runs_of_it_from_everywhere() -> None:
    made, text = tokenizer("bytes"), BOOK
    whole = np.array(encode(made, text))
    blocks = pack(Tokens(made, 64, 8192, seed=0).of([Document(text)]), 64, 0, 8192)
    assert blocks.tokens == 8192
    windows = np.lib.stride_tricks.sliding_window_view(whole, 64)
    index = {row.tobytes(): place for place, row in enumerate(windows.astype(np.int32))}
    places = [index[row.tobytes()] for row in blocks.input_ids]
    assert len(set(places)) == len(places)
    spread = np.histogram(places, bins=4, range=(0, len(whole)))[0]
    assert (spread > 0).all()
    assert places != sorted(places)


def test_the_sample_depends_on_the_seed_alone() -> None:
    made = tokenizer("bytes")

    def sample(seed: int) -> list[int]:
        documents = Tokens(made, 64, 2048, seed).of([Document(BOOK)])
        return list(chain.from_iterable(tokens for tokens, _ in islice(documents, 3)))

    assert sample(0) == sample(0) != sample(1)


def test_no_more_is_tokenised_than_is_wanted() -> None:
    counting = Counting(tokenizer("bytes"))
    documents = Tokens(counting, 64, 2048, seed=0).of([Document(BOOK * 20)])
    assert pack(documents, 64, 0, 2048).tokens == 2048
    assert counting.characters < 100_000  # of 4.2 million


def test_one_long_text_keeps_no_other_from_being_read(tmp_path) -> None:
    import json

    rows = [{"text": BOOK, "of": "book"}, {"text": BOOK.upper(), "of": "cry"}]
    rows += [{"text": "a note", "of": "note"}]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(dataset=str(path), domain_column="of")
    blocks = read_blocks(data, tokenizer("bytes"), 64, 4096)
    assert blocks.domain_names == ("book", "cry", "note")
    assert blocks.tokens == 4096
    assert blocks.documents == 3
    assert abs(np.diff(np.bincount(blocks.domains)[:2])) <= 16 // 4


def test_packing_takes_no_more_than_it_wants() -> None:
    taken = []

    def endless(number: int) -> Any:
        while True:
            taken.append(number)
            yield number

    blocks = pack(((endless(n), None) for n in (1, 2)), 8, 0, max_tokens=1003)
    assert blocks.tokens == len(taken) == 1003
    assert blocks.documents == 1
    short = pack([([1] * 5, "a"), ([2] * 50, "b")], 8, 0, max_tokens=12)
    assert short.lengths.tolist() == [5, 7]
