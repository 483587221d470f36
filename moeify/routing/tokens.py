"""Texts as tokens: slice by slice, framed once, and as a sample where a text is too long."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from moeify.errors import DatasetError
from moeify.routing.chats import Span
from moeify.routing.documents import Document
from moeify.routing.loading import encode, encode_with_places

_SLICE = 1 << 16  # characters: a tokenizer takes some hundred bytes of memory for each
_SHORTEST = 1024
_REACH = 512  # characters in which a seam looks for white space
_CONTEXT = 64
_WORD_ENDS = re.compile(r"(?<=\S)\s")
_BLOCKS = 4  # of each passage in a sample
_CHARACTERS = 4  # of a token, about
_SHARES = 16  # of the limit: as many long texts are held at most


class Tokens:
    """The tokens of one text after the other, made as they are taken.

    A text begins and ends as the tokenizer has it, with the end-of-text token where the tokenizer
    has nothing to say. One of more than ``limit`` tokens gives passages of whole blocks of
    ``seq_len`` in random order, seeded by ``seed`` and the text's place. A token ``t`` that has no
    label is given as ``~t``, which is below zero.
    """

    def __init__(self, tokenizer: Any, seq_len: int, limit: int | None, seed: int) -> None:
        self.tokenizer, self.seq_len, self.limit, self.seed = tokenizer, seq_len, limit, seed
        self.before, self.behind = frame(tokenizer)

    def of(self, texts: Iterable[Document]) -> Iterator[tuple[Iterable[int], str | None]]:
        """The tokens of each text, or a share of them, and its domain; at last the other shares."""
        held: deque[tuple[Iterator[int], str | None]] = deque()
        for place, (text, domain, labelled) in enumerate(texts):
            first = self._slice(text, labelled, 0, _SLICE)
            if self.limit is None or len(first) * len(text) <= self.limit * _seam(text, _SLICE):
                starts = range(_SLICE, len(text), _SLICE)
                rest = map(partial(self._slice, text, labelled, size=_SLICE), starts)
                yield chain(first, chain.from_iterable(rest)), domain
                continue
            # One long text must not keep others, of other domains, from being read.
            held.append((self._sample(text, labelled, place), domain))
            yield self._share(held[-1][0]), domain
        while held:
            tokens, domain = held.popleft()
            if share := self._share(tokens):
                yield share, domain
                held.append((tokens, domain))

    def _share(self, tokens: Iterator[int]) -> list[int]:
        assert self.limit is not None, "only texts beyond it are shared out"
        return list(islice(tokens, -(-self.limit // (_SHARES * self.seq_len)) * self.seq_len))

    def _sample(self, text: str, labelled: tuple[Span, ...] | None, place: int) -> Iterator[int]:
        size = max(_SHORTEST, _BLOCKS * _CHARACTERS * self.seq_len)
        starts = range(0, len(text), size)
        order = np.random.default_rng((self.seed, place)).permutation(len(starts))
        for number in order:
            tokens = self._slice(text, labelled, starts[number], size)
            # Half a block would have the next passage, from elsewhere, for its other half.
            yield from tokens[: len(tokens) // self.seq_len * self.seq_len or len(tokens)]

    def _slice(self, text: str, labelled: tuple[Span, ...] | None, start: int, size: int) -> list[int]:
        """Tokens from the seam at ``start`` to that ``size`` characters on."""
        begin, end = _seam(text, start), _seam(text, start + size)
        # Some tokenizers put a space before what they take for the first word.
        context = max(begin - _CONTEXT, 0) if text[begin : begin + 1].isspace() else begin
        tokens = self._marked(text[context:end], labelled, context)
        if context < begin:
            tokens = tokens[len(encode(self.tokenizer, text[context:begin], special=False)) :]
        if begin == 0 and _is(tokens[:1]) != self.before[-1:]:
            tokens = self._as_labelled(self.before, labelled is None) + tokens
        if end == len(text) and _is(tokens[-1:]) != self.behind[-1:]:
            answered = labelled is None or any(last == end for _, last in labelled)
            tokens = tokens + self._as_labelled(self.behind, answered)
        return tokens

    def _marked(self, text: str, labelled: tuple[Span, ...] | None, offset: int) -> list[int]:
        """The tokens of a part of a text that begins at ``offset``, those outside of labels marked."""
        if labelled is None:
            return encode(self.tokenizer, text, special=False)
        tokens, places = encode_with_places(self.tokenizer, text)
        if places is None:
            raise DatasetError(
                f"a {type(self.tokenizer).__name__} does not say where in a text its tokens are",
                "leave --assistant-only out, or use a tokenizer with a tokenizer.json",
            )
        spans = [(begin - offset, end - offset) for begin, end in labelled]
        return [
            token if any(begin < last and first < end for begin, end in spans) else ~token
            for token, (first, last) in zip(tokens, places, strict=True)
        ]

    @staticmethod
    def _as_labelled(tokens: list[int], labelled: bool) -> list[int]:
        return tokens if labelled else [~token for token in tokens]


def _is(tokens: list[int]) -> list[int]:
    """Tokens whether they have labels or not."""
    return [max(token, ~token) for token in tokens]


def _seam(text: str, place: int) -> int:
    """Where a word ends at ``place`` or soon behind it; ``place`` itself within a long word."""
    if not 0 < place < len(text):
        return min(place, len(text))
    found = _WORD_ENDS.search(text, place, place + _REACH)
    return place if found is None else found.start()


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that stand before and behind every text."""
    bare, whole = encode(tokenizer, "a", special=False), encode(tokenizer, "a")
    extra = len(whole) - len(bare)
    begin = next((n for n in range(extra + 1) if whole[n : n + len(bare)] == bare), 0)
    before, behind = whole[:begin], whole[begin + len(bare) :]
    if not behind and tokenizer.eos_token_id is not None:
        behind = [tokenizer.eos_token_id]
    return before, behind
