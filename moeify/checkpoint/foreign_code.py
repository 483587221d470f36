"""Where a checkpoint's JSON names code to be run, and the same JSON without it."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.json_text import MAX_TEXT_BYTES, parse_json, read_json
from moeify.checkpoint.regular import read_bytes
from moeify.errors import CheckpointError

_KEYS = frozenset(
    {
        "auto_map",
        "custom_pipelines",  # Python files of this or another repository
        # Kernels that transformers would download from the Hub and run.
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
    }
)
_NAMING = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_MODULES, _LIBRARY = "modules.json", "sentence_transformers."
_OWN = frozenset(path.stem for path in (Path(__file__).parents[1] / "modeling").glob("*.py"))
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_ESCAPED = re.compile(rb"\\u00[2-7]")  # letters that hide the name of a key
_MARKS = tuple(f'"{key}"'.encode() for key in _KEYS)


def without_code(value: Any) -> Any:
    """``value`` without the keys that name code, at any depth."""
    if isinstance(value, dict):
        return {key: without_code(part) for key, part in value.items() if key not in _KEYS}
    return [without_code(part) for part in value] if isinstance(value, list) else value


def names_code(folder: Path) -> tuple[str, ...]:
    """What of a checkpoint is computed by code that it names, as in ``AutoModel in config.json``.

    moeify's own classes, which travel with what it writes, do not count. What cannot be read names
    nothing.
    """
    found = []
    for file in _NAMING:
        with _what_can_be_read():
            named = read_json(resolve_inside(folder, file)).get("auto_map")
            if isinstance(named, dict) and not _is_own(named):
                found.append(f"{', '.join(sorted(named))} in {file}")
            elif isinstance(named, list | str):  # as old tokenizers have it
                found.append(f"the class in {file}")
    return (*found, *_modules(folder))


@contextmanager
def _what_can_be_read() -> Iterator[None]:
    """A block in which files that are missing or no JSON are passed over; a failing disk is not."""
    try:
        yield
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
            raise


def _modules(folder: Path) -> Iterator[str]:
    """Modules of a sentence encoder that are not sentence-transformers' own."""
    with _what_can_be_read():
        path = resolve_inside(folder, _MODULES)
        listed = b'{"modules": %b}' % read_bytes(path, MAX_TEXT_BYTES)
        modules = parse_json(listed, _MODULES, path)["modules"]
        modules = modules if isinstance(modules, list) else []
        kinds = [str(module.get("type")) for module in modules if isinstance(module, dict)]
        if others := [kind for kind in kinds if not kind.startswith(_LIBRARY)]:
            yield f"{', '.join(others)} in {_MODULES}"


def code_note(folder: Path) -> tuple[str, ...]:
    """A sentence for those who load ``folder`` with its code; none where it names no code."""
    return tuple(
        f"code of its own computes {part}: it is never run and does not go along, so that what"
        " users load with trust_remote_code=True may compute something else"
        for part in [" and ".join(names_code(folder))]
        if part
    )


def _is_own(auto_map: dict[str, Any]) -> bool:
    modules = (str(name).rpartition("--")[2].partition(".")[0] for name in auto_map.values())
    return _OWN.issuperset(modules)


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
