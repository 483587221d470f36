"""Texts and their domains, from the rows of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from moeify.errors import DatasetError
from moeify.routing.chats import CHAT_COLUMNS, Span, answers, conversation, rendered
from moeify.routing.config import DataConfig
from moeify.routing.rows import explained, open_rows

_TEXT = "text"
_SHUFFLE_BUFFER = 1000
_LOOKED_AT = 100
_NO_TEXT = (
    "write each row's text into a column of its own and name it with --text-column;"
    " a conversation is a list of {role, content} or {from, value}"
)


class Document(NamedTuple):
    """A text, its domain where a column names one, and where labels are; None where they are everywhere."""

    text: str
    domain: str | None = None
    labelled: tuple[Span, ...] | None = None


def read_documents(config: DataConfig, tokenizer: Any = None) -> Iterator[Document]:
    """Texts in seeded random order.

    Conversations are rendered with the chat template of ``tokenizer``. Empty texts are left out.
    Raises ``DatasetError`` for a file or id that cannot be read, a missing column, or a value that
    is neither text nor a conversation.
    """
    rows = open_rows(config, lambda names: _needed(names, config))
    with explained(config):
        columns = _columns(rows, config)
    # Many datasets are sorted, and only a first part of them may be read.
    shuffling = {"buffer_size": _SHUFFLE_BUFFER} if config.streaming else {}
    rows = iter(rows.shuffle(seed=config.seed, **shuffling))
    for _ in range(config.max_samples) if config.max_samples is not None else iter(int, 1):
        with explained(config):
            row = next(rows, None)
        if row is None:
            return
        text, labelled = _text({name: row.get(name) for name in columns}, config, tokenizer)
        if text.strip():
            yield Document(
                text, None if config.domain_column is None else _domain(row, config.domain_column), labelled
            )


def _candidates(config: DataConfig) -> tuple[tuple[str, ...], ...]:
    """The columns that may hold the text, those that are taken first before the others."""
    return ((_TEXT,), *CHAT_COLUMNS) if config.text_column is None else ((config.text_column,),)


def _chosen(names: Iterable[str], config: DataConfig) -> tuple[str, ...] | None:
    """Those of the columns ``names`` that hold the text; None where there are none."""
    there = set(names)
    return next((option for option in _candidates(config) if there.issuperset(option)), None)


def _needed(names: list[str], config: DataConfig) -> list[str]:
    """The columns that are read; all where those that are asked for are missing, to say what there is."""
    asked = {*(_chosen(names, config) or ()), *filter(None, [config.domain_column])}
    kept = [name for name in names if name in asked]
    return kept if len(kept) == len(asked) and _chosen(kept, config) else names


def _columns(rows: Any, config: DataConfig) -> tuple[str, ...]:
    """The columns that hold the text; raises ``DatasetError`` where they or the domains' are missing."""
    names, found = set(rows.column_names or ()), dict[str, Any]()
    for number, row in enumerate(rows):
        done = _chosen(names, config) and (config.domain_column is None or config.domain_column in names)
        # Objects have no columns in common: those of a file are looked through, to the end if need be.
        if (rows.column_names and done) or (number >= _LOOKED_AT and (rows.column_names or config.streaming or done)):
            break
        names |= row.keys()
        found |= {name: value for name, value in row.items() if value is not None}
    columns = _chosen(names, config)
    if columns is None:
        fitting = [name for name, value in found.items() if isinstance(value, str) or conversation({name: value})]
        raise DatasetError(
            f"{config.dataset} has no column {config.text_column or _TEXT!r}",
            f"pass --text-column with one of: {', '.join(fitting)}" if fitting else _NO_TEXT,
        )
    if config.domain_column is not None and config.domain_column not in names:
        fitting = [k for k, v in found.items() if isinstance(v, str | int | float) and k not in columns]
        raise DatasetError(
            f"{config.dataset} has no column {config.domain_column!r}",
            f"pass --domain-column with one of: {', '.join(fitting)}" if fitting else "leave --domain-column out",
        )
    return columns


def _text(cells: dict[str, Any], config: DataConfig, tokenizer: Any) -> tuple[str, tuple[Span, ...] | None]:
    """The text of a row's cells and where its labels are; raises ``DatasetError`` where they hold none."""
    if all(cell is None for cell in cells.values()):
        return "", None
    text, labelled = next(iter(cells.values())), None
    if len(cells) > 1 or not isinstance(text, str):
        messages = conversation(cells)
        if messages is None:
            held = ", ".join(type(cell).__name__ for cell in cells.values())
            raise DatasetError(
                f"column {' and '.join(map(repr, cells))} of {config.dataset} holds {held}, not text", _NO_TEXT
            )
        text = rendered(messages, tokenizer)
        labelled = answers(messages, text, tokenizer) if config.assistant_only else None
    elif config.assistant_only:
        raise DatasetError(
            f"column {next(iter(cells))!r} of {config.dataset} holds texts, in which nobody answers",
            "leave --assistant-only out, or name a column of conversations with --text-column",
        )
    # JSON can spell half of a character that takes two.
    return text if text.isascii() else text.encode("utf-8", "replace").decode(), labelled


def _domain(row: dict[str, Any], column: str) -> str | None:
    """What a domain's cell says; None where it is empty."""
    value = row.get(column)
    if isinstance(value, float):  # also whole numbers are, in columns with empty cells
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None or not str(value).strip() else str(value)
