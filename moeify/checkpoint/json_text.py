"""JSON that nobody vouched for, parsed within bounds of memory, depth and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moeify.checkpoint.regular import read_bytes
from moeify.errors import CheckpointError

MAX_BYTES = 86_000_000
"""What text and values of one document may take in memory: an index of 200,000 tensors fits."""
MAX_TEXT_BYTES = MAX_BYTES // 2
"""Beyond which a document is not even read."""
_MAX_DEPTH = 100
_MAX_DIGITS = 4300  # beyond which Python reads and prints no integer, for it takes too long
_LONG_NUMBER = re.compile(r"[0-9]{100}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ``CheckpointError``."""
    text = _text(read_bytes(path, MAX_TEXT_BYTES), path.name, path, MAX_BYTES)
    return _parsed(text, path.name, path)


def parse_json(raw: bytes, what: str, path: Path, room: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in ``raw``.

    Raises ``CheckpointError``, naming ``what``, for what is no JSON object in UTF-8, and for what
    parsers understand in different ways or later steps choke on: a key that stands twice, more than
    4300 digits, half a surrogate pair, nesting deeper than 100, more than about ``room`` bytes of
    values. How large a number may be decides whoever uses it.
    """
    return _parsed(_text(raw, what, path, room), what, path)


def _text(raw: bytes, what: str, path: Path, room: int) -> str:
    """``raw`` as text, so that a caller without further use for the bytes can let them go."""
    _check_size(raw, what, path, room)
    try:
        return raw.decode("utf-8")
    except ValueError as error:
        raise CheckpointError(f"{what} is not valid JSON", path=path) from error


def _parsed(text: str, what: str, path: Path) -> dict[str, Any]:
    number = _bounded if _LONG_NUMBER.search(text) else None  # None: as fast as can be
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_int=number)
    except _RefusedError as error:
        raise CheckpointError(f"{what} {error}", path=path) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON", path=path) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{what} is not a JSON object", path=path)
    _check_depth(document, what, path)
    if _SURROGATE.search(text):
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{what} holds text that is not Unicode", path=path) from error
    return document


class _RefusedError(Exception):
    """What is valid JSON and refused nevertheless."""


def _check_size(raw: bytes, what: str, path: Path, room: int) -> None:
    """Estimate what the values will take, from the number of marks between them."""
    text = len(raw) * (2 if raw.isascii() else 8)  # the text, and the strings cut out of it
    values = 240 * raw.count(b"{") + 72 * raw.count(b"[") + 48 * raw.count(b",")
    if text + values > room:
        raise CheckpointError(
            f"{what} would take {(text + values) / 1e6:.0f} MB of memory, more than the"
            f" {room / 1e6:.0f} MB that it may take",
            "check that it is what it should be: published ones are far smaller",
            path=path,
        )


def _check_depth(document: dict[str, Any], what: str, path: Path) -> None:
    level: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _children(node) if type(child) is dict or type(child) is list]
        if not level:
            return
    raise CheckpointError(f"{what} is nested more than {_MAX_DEPTH} levels deep", path=path)


def _children(node: Any) -> Iterable[Any]:
    return node.values() if type(node) is dict else node


def _bounded(text: str) -> int:
    digits = len(text.removeprefix("-"))
    if digits > _MAX_DIGITS:
        raise _RefusedError(f"holds a number of {digits} digits, more than {_MAX_DIGITS}")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _RefusedError(f"names {twice[:200]!r} twice")
    return result
