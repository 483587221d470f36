"""What a new model card takes over from the card of the checkpoint it was made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.regular import read_text
from moeify.errors import CheckpointError

CARD_FILE = "README.md"
MAX_CARD_BYTES = 4_000_000
_INHERITED = ("license", "license_name", "license_link", "language", "datasets", "base_model")
_HEADER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r?\n|$)", re.DOTALL)
_LONGEST, _MOST = 200, 100


def inherited_metadata(folder: Path | None) -> dict[str, Any]:
    """Licence, languages, data sets and base model of the card in ``folder``.

    Only short texts and lists of them are taken: whoever wrote the card may have meant harm.
    """
    import yaml  # huggingface_hub's own reader of cards would bring its whole client along

    if folder is None:
        return {}
    try:
        text = read_text(resolve_inside(folder, CARD_FILE), MAX_CARD_BYTES)
        header = _HEADER.match(text)
        found = yaml.safe_load(header[1]) if header else None
    except (CheckpointError, ValueError, TypeError, AttributeError, yaml.YAMLError, RecursionError):
        return {}  # a card without readable metadata has nothing to hand on
    if not isinstance(found, dict):
        return {}
    return {key: found[key] for key in _INHERITED if _is_plain(found.get(key))}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= _MOST and all(isinstance(v, str) and _is_plain(v) for v in value)
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()
