"""YAML and JSON files that people write: a mapping, read without running anything in it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.regular import read_bytes
from moeify.errors import CheckpointError

MAX_FILE_BYTES = 16_000_000
_MOST_VALUES = 1_000_000
"""Values of a file at most, those that aliases repeat counted each time."""
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$", re.ASCII)


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML or .json file; raises ``CheckpointError``."""
    if path.suffix == ".json":
        return read_json(path)
    import yaml

    text = read_bytes(path, MAX_FILE_BYTES)
    try:
        document = _parsed(yaml.SafeLoader(text), path)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path.name} is no valid YAML: {line}", path=path) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path.name} is no mapping of names to values", path=path)
    return document


def _parsed(loader: Any, path: Path) -> Any:
    """What the safe ``loader`` reads; 1e-4 is a number, as in YAML 1.2, which by itself it takes only as 1.0e-4."""
    known = loader.yaml_implicit_resolvers
    number = ("tag:yaml.org,2002:float", _EXPONENT)
    loader.yaml_implicit_resolvers = known | {first: [number, *known.get(first, [])] for first in "+-0123456789"}
    node = loader.get_single_node()
    _check(node, path)
    return None if node is None else loader.construct_document(node)


def _check(document: Any, path: Path) -> None:
    """Raise ``CheckpointError`` for aliases that make a few lines endless, and for a name that stands twice.

    Of such a name YAML would take the last.
    """
    if _values(document, {}) > _MOST_VALUES:
        raise CheckpointError(f"{path.name} has more than {_MOST_VALUES:,} values, by its aliases", path=path)
    names = Counter(str(key.value) for key, _ in document.value) if getattr(document, "id", "") == "mapping" else {}
    if twice := [name for name, count in names.items() if count > 1]:
        raise CheckpointError(f"{path.name} names {twice[0][:200]!r} twice", path=path)


def _values(node: Any, known: dict[int, int]) -> int:
    """The values of a node and all below it; ``known`` are those of nodes that were counted."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # that of a node inside itself
        below = getattr(node, "value", None)
        parts = below if isinstance(below, list) else []
        inside = (part for entry in parts for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_values(part, known) for part in inside)
    return known[id(node)]
