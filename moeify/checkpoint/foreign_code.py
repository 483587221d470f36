"""Where a checkpoint's JSON names code to be run, and the same JSON without it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from moeify.checkpoint.json_text import MAX_TEXT_BYTES, parse_json
from moeify.checkpoint.regular import read_bytes

__all__ = ["cleaned", "without_code"]

_KEYS = frozenset(
    {
        "auto_map", "custom_pipelines",  # Python files of this or another repository
        # Kernels that transformers would download from the Hub and run.
        "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
        "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    }
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_ESCAPED = re.compile(rb"\\u00[2-7]")  # letters that hide the name of a key
_MARKS = tuple(f'"{key}"'.encode() for key in _KEYS)


def without_code(value: Any) -> Any:
    """``value`` without the keys that name code, at any depth."""
    if isinstance(value, dict):
        return {key: without_code(part) for key, part in value.items() if key not in _KEYS}
    return [without_code(part) for part in value] if isinstance(value, list) else value


def cleaned(path: Path) -> str | None:
    """The JSON file ``path`` without the keys that name code; None where it has none.

    Raises ``CheckpointError`` for one that seems to have some and cannot be read.
    """
    if path.suffix != ".json" or path.name in _VOCABULARIES:
        return None
    raw = read_bytes(path, MAX_TEXT_BYTES)
    if not (any(mark in raw for mark in _MARKS) or _ESCAPED.search(raw)):
        return None
    document = parse_json(raw, path.name, path)
    clean = without_code(document)
    return None if clean == document else json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
