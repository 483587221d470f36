"""YAML and JSON files that people write: a mapping, read without running anything in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.regular import read_bytes
from moeify.errors import CheckpointError

MAX_FILE_BYTES = 16_000_000

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
    _check_keys(node, path)
    return None if node is None else loader.construct_document(node)


def _check_keys(node: Any, path: Path) -> None:
    """Raise ``CheckpointError`` for a name that stands twice, of which YAML would take the last."""
    names = [str(key.value) for key, _ in node.value] if getattr(node, "id", "") == "mapping" else []
    if twice := [name for name in names if names.count(name) > 1]:
        raise CheckpointError(f"{path.name} names {twice[0][:200]!r} twice", path=path)
