"""moeify.json: where a checkpoint came from and every step that moeify took since."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import read_json
from moeify.checkpoint.source import Source

__all__ = ["RECORD_FILE", "Record", "Step", "expert_sources"]

RECORD_FILE = "moeify.json"
SCHEMA = "moeify.provenance/1"
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
        path = source.folder / RECORD_FILE
        if not path.exists():
            return cls(source=source.name, revision=source.revision)
        document = read_json(path)
        steps = document.get("steps")
        return cls(
            source=str(document.get("source", source.name)),
            revision=document.get("revision"),
            steps=tuple(_read_step(step) for step in steps if isinstance(step, dict))
            if isinstance(steps, list)
            else (),
        )

    def expert_labels(self, num_experts: int) -> tuple[str, ...] | None:
        """What each expert knows; None unless every one was made of a source and is still there."""
        labels: dict[int, str] = {}
        for step in self.steps:
            if step.command == "prune":
                return None
            for source in expert_sources(step):
                numbers = source.get("experts")
                for expert in numbers if isinstance(numbers, list | tuple) else ():
                    labels[expert] = str(source.get("label"))
        if set(labels) != set(range(num_experts)):
            return None
        return tuple(labels[expert] for expert in range(num_experts))

    def with_step(self, step: Step) -> Record:
        """The record with one step more."""
        return Record(source=self.source, revision=self.revision, steps=(*self.steps, step))

    def write(self, folder: Path) -> None:
        """Write moeify.json into ``folder``."""
        document = {
            "schema": SCHEMA,
            "source": self.source,
            "revision": self.revision,
            "steps": [asdict(step) for step in self.steps],
        }
        text = json.dumps(document, indent=2, ensure_ascii=False, default=_plain)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def expert_sources(step: Step) -> list[dict[str, Any]]:
    """What a step made experts of, as it recorded it."""
    listed = step.results.get("sources")
    return [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []


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


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return value.name  # never a home folder in a file that is published
    raise TypeError(f"{type(value).__name__} does not belong in {RECORD_FILE}")
