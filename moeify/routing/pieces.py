"""A text as its tokens and the piece of the text that each of them stands for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from moeify.routing.loading import Places, encode_with_places
from moeify.routing.tokens import frame

_CHARACTERS = 16  # of a token at most, about: no more of a long text is looked at
_UNFINISHED = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The T tokens of a text or of its beginning, framed as the tokenizer has it.

    ``texts`` [T] together are the text: a token has what stands before it and belongs to no other, and of the tokens
    that share a character the first has it, the others nothing. ``framing`` [T] says which stand around the text;
    theirs is their name in the vocabulary. ``cut`` says whether the text goes on.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    framing: tuple[bool, ...]
    cut: bool

    def __len__(self) -> int:
        return len(self.token_ids)


def pieces(tokenizer: Any, text: str, limit: int) -> Pieces:
    """At most ``limit`` tokens of ``text``, none where only those around it are left."""
    before, behind = frame(tokenizer)
    head = text[: limit * _CHARACTERS]
    token_ids, places = encode_with_places(tokenizer, head)
    texts = _by_decoding(tokenizer, token_ids) if places is None else _by_places(head, places)
    if len(head) < len(text):  # whose last word is cut
        token_ids, texts = token_ids[:-1], texts[:-1]
    # As in ``Tokens``: a text may bring these tokens along.
    before = [] if token_ids[:1] == before[-1:] else before
    behind = [] if len(head) < len(text) or token_ids[-1:] == behind[-1:] else behind
    if not token_ids:
        before = behind = []
    whole = [*before, *token_ids, *behind]
    names = [str(name) for name in tokenizer.convert_ids_to_tokens([*before, *behind])]
    around = [*([True] * len(before)), *([False] * len(token_ids)), *([True] * len(behind))]
    return Pieces(
        token_ids=tuple(whole[:limit]),
        texts=tuple([*names[: len(before)], *texts, *names[len(before) :]][:limit]),
        framing=tuple(around[:limit]),
        cut=len(head) < len(text) or len(before) + len(token_ids) > limit,
    )


def _by_places(text: str, places: Places) -> list[str]:
    """The pieces by what a fast tokenizer says of their places."""
    if not places:
        return []
    stops = [0]
    for _, stop in places:
        stops.append(max(stop, stops[-1]))
    stops[-1] = len(text)  # white space that no token stands for
    return [text[start:stop] for start, stop in pairwise(stops)]


def _by_decoding(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """The pieces by what each token adds to the decoded text, which need not be the text that was encoded."""
    texts = [""] * len(token_ids)
    place, first = 0, 0
    for number in range(len(token_ids)):
        whole = tokenizer.decode(token_ids[: number + 1], clean_up_tokenization_spaces=False)
        if whole.endswith(_UNFINISHED) and number + 1 < len(token_ids):  # bytes of a character
            continue
        texts[first] = whole[place:]
        place, first = len(whole), number + 1
    return texts
