"""moeify.json: where a checkpoint came from and every step that moeify took since."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.reader import resolve_inside
from moeify.checkpoint.source import Source

__all__ = ["RECORD_FILE", "Record", "Step"]

RECORD_FILE = "moeify.json"
SCHEMA = "moeify.provenance/1"
_TOKEN = re.compile(r"hf_\w{8,}")
_VERSIONED = ("moeify", "numpy", "safetensors", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command that wrote the checkpoint: its options, its results, the versions it ran on."""

    command: str
    options: dict[str, Any]
    results: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of moeify.json. ``source`` and ``revision`` name the dense model."""

    source: str
    revision: str | None = None
    steps: tuple[Step, ...] = ()

    @classmethod
    def read(cls, source: Source) -> Record:
        """The record of a checkpoint; an empty one where it has none."""
        if not os.path.lexists(source.folder / RECORD_FILE):
            return cls(source=source.name, revision=source.revision)
        document = read_json(resolve_inside(source.folder, RECORD_FILE))
        steps, revision = document.get("steps"), document.get("revision")
        return cls(
            source=str(document.get("source", source.name)),
            revision=None if revision is None else str(revision),
            steps=tuple(_read_step(step) for step in steps if isinstance(step, dict))
            if isinstance(steps, list)
            else (),
        )

    def with_step(self, step: Step) -> Record:
        """The record with one step more."""
        return Record(source=self.source, revision=self.revision, steps=(*self.steps, step))

    def write(self, folder: Path) -> None:
        """Write moeify.json into ``folder``."""
        document = {
            "schema": SCHEMA,
            "source": self.source,
            "revision": self.revision,
            "steps": [_public(asdict(step)) for step in self.steps],
        }
        text = json.dumps(document, indent=2, ensure_ascii=False, default=_plain)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is written."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read_step(step: dict[str, Any]) -> Step:
    parts = {key: step.get(key) for key in ("options", "results", "versions")}
    return Step(
        command=str(step.get("command", "")),
        **{key: value if isinstance(value, dict) else {} for key, value in parts.items()},
    )


def _public(value: Any) -> Any:
    """``value`` as it may be published: of a path only the last name, of a token nothing."""
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_public(part) for part in value]
    if isinstance(value, Path):
        return value.name
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~", "./", "../")) or ("/" in value and os.path.exists(value)):
        value = Path(value).name
    return _TOKEN.sub("hf_***", value)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} does not belong in {RECORD_FILE}")
