"""YAML and JSON files that people write: a mapping, read without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.regular import read_bytes
from moeify.errors import CheckpointError

MAX_FILE_BYTES = 16_000_000


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML or .json file; raises ``CheckpointError``."""
    if path.suffix == ".json":
        return read_json(path)
    import yaml

    text = read_bytes(path, MAX_FILE_BYTES)
    try:
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader), path)
        document = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path.name} is no valid YAML: {line}", path=path) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path.name} is no mapping of names to values", path=path)
    return document


def _check_keys(node: Any, path: Path) -> None:
    """Raise ``CheckpointError`` for a name that stands twice, of which YAML would take the last."""
    names = [str(key.value) for key, _ in node.value] if getattr(node, "id", "") == "mapping" else []
    if twice := [name for name in names if names.count(name) > 1]:
        raise CheckpointError(f"{path.name} names {twice[0][:200]!r} twice", path=path)
