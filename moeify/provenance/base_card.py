"""What a new model card takes over from the card of the checkpoint it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.regular import read_text
from moeify.errors import CheckpointError

__all__ = ["inherited_metadata"]

CARD_FILE = "README.md"
MAX_CARD_BYTES = 4_000_000
_INHERITED = ("license", "license_name", "license_link", "language", "datasets", "base_model")
_LONGEST, _MOST = 200, 100


def inherited_metadata(folder: Path | None) -> dict[str, Any]:
    """Licence, languages, data sets and base model of the card in ``folder``.

    Only short texts and lists of them are taken: whoever wrote the card may have meant harm.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if folder is None:
        return {}
    try:
        text = read_text(resolve_inside(folder, CARD_FILE), MAX_CARD_BYTES)
        if not text.lstrip().startswith("---"):  # of which huggingface_hub would warn
            return {}
        found = vars(ModelCard(text, ignore_metadata_errors=True).data)
    except (CheckpointError, ValueError, TypeError, AttributeError, YAMLError, RecursionError):
        return {}  # a card without readable metadata has nothing to hand on
    return {key: found[key] for key in _INHERITED if _is_plain(found.get(key))}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= _MOST and all(isinstance(v, str) and _is_plain(v) for v in value)
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()
