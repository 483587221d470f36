"""Example texts for labels, from a YAML or JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeify.checkpoint.mapping_file import read_mapping
from moeify.errors import CheckpointError, DatasetError
from moeify.routing.data import Blocks
from moeify.routing.loading import encode

_FORM = "write it as LABEL: [text, text], or LABEL: {positive: [...], negative: [...]}"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Texts that belong to a label, and texts that do not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


def read_prompts(path: Path) -> dict[str, Prompts]:
    """Prompts by label; raises ``DatasetError`` for a file that is not of the form."""
    document = _document(path)
    if not document:
        raise DatasetError(f"{path.name} does not map labels to texts", _FORM)
    return {str(label): _prompts(path, str(label), value) for label, value in document.items()}


def _document(path: Path) -> dict[Any, Any]:
    try:
        return read_mapping(path)
    except CheckpointError as error:
        raise DatasetError(error.message, f"name a YAML or JSON file of labels and texts: {_FORM}") from error


def _prompts(path: Path, label: str, value: Any) -> Prompts:
    parts = value if isinstance(value, dict) else {"positive": value}
    if parts.keys() - {"positive", "negative"} or "positive" not in parts:
        raise DatasetError(f"{path.name}: label {label!r} has the keys {', '.join(map(str, parts))}", _FORM)
    texts = {}
    for kind, given in parts.items():
        listed = [given] if isinstance(given, str) else given
        good = isinstance(listed, list) and all(isinstance(text, str) and text.strip() for text in listed)
        if not good or (kind == "positive" and not listed):
            raise DatasetError(f"{path.name}: {kind} of label {label!r} is no list of texts", _FORM)
        texts[kind] = tuple(listed)
    return Prompts(**texts)


def prompt_blocks(prompts: dict[str, Prompts], labels: Sequence[str], tokenizer: Any, seq_len: int) -> Blocks:
    """Every text as one block; domain 2n holds label n's positive texts, 2n + 1 its negative."""
    rows = []
    for number, label in enumerate(labels):
        for kind, texts in enumerate((prompts[label].positive, prompts[label].negative)):
            for text in texts:
                tokens = encode(tokenizer, text)[:seq_len]
                rows.append((tokens, 2 * number + kind))
    width = max(1, max(len(tokens) for tokens, _ in rows))
    input_ids = np.zeros((len(rows), width), np.int32)
    for place, (tokens, _) in enumerate(rows):
        input_ids[place, : len(tokens)] = tokens
    return Blocks(
        input_ids=input_ids,
        lengths=np.array([len(tokens) for tokens, _ in rows], np.int64),
        domains=np.array([domain for _, domain in rows], np.int64),
        domain_names=tuple(labels),
        documents=len(rows),
    )
