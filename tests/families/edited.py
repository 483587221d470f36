"""Checkpoints changed as files in the wild differ from what save_pretrained writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Tensors = dict[str, Any]


def edit_tensors(folder: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **changes: object) -> dict[str, Any]:
    """Change keys of config.json, or remove those that become ``...``."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return config


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
