"""moeify.json: where a checkpoint came from and every step that moeify took since."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moeify.checkpoint.inside import check_relative, resolve_inside
from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.source import Source
from moeify.errors import CheckpointError
from moeify.families.conversion import DENSE_TYPE

RECORD_FILE = "moeify.json"
SCHEMA = "moeify.provenance/1"
UNTIED = "untied"
"""Under which an upcycling's results name the tensors that it wrote apart from the embeddings that they shared."""
_TOKEN = re.compile(r"hf_\w{8,}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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

    def expert_labels(self, num_experts: int) -> tuple[str, ...] | None:
        """What each expert knows; None unless every one was made of a source and is still there."""
        labels: dict[int, str] = {}
        for step in self.steps:
            if step.command == "prune":
                return None
            for source in expert_sources(step):
                for expert in source["experts"]:
                    labels[expert] = str(source.get("label"))
        if set(labels) != set(range(num_experts)):
            return None
        return tuple(labels[expert] for expert in range(num_experts))

    @property
    def dense_type(self) -> str | None:
        """The model type of the dense checkpoint that upcycling began with, where it is known."""
        said = [step.results[DENSE_TYPE] for step in self.steps if DENSE_TYPE in step.results]
        return str(said[-1]) if said else None

    @property
    def untied(self) -> tuple[str, ...] | None:
        """Output tensors that upcycling gave values of their own; None where it left the embeddings shared."""
        said = [step.results[UNTIED] for step in self.steps if isinstance(step.results.get(UNTIED), list)]
        return tuple(map(str, said[-1])) if said else None

    def with_step(self, step: Step) -> Record:
        """The record with one step more."""
        # Here, so that the card says no more of paths and tokens than the record does.
        public = Step(**_public(asdict(step)))
        return Record(source=self.source, revision=self.revision, steps=(*self.steps, public))

    def with_results(self, **results: Any) -> Record:
        """The record with more ``results`` of its last step."""
        if not self.steps:
            return self
        *before, last = self.steps
        return replace(self, steps=(*before, replace(last, results=last.results | results)))

    def write(self, folder: Path, files: Mapping[str, FileEntry] | None = None) -> None:
        """Write moeify.json into ``folder``, with a list of its ``files`` where they are known."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "source": self.source,
            "revision": self.revision,
            "steps": [_public(asdict(step)) for step in self.steps],
        }
        if files is not None:
            document["files"] = {
                name: {"bytes": entry.nbytes} | ({"sha256": entry.sha256} if entry.sha256 else {})
                for name, entry in files.items()
            }
        text = json.dumps(document, indent=2, ensure_ascii=False, default=_plain)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the checkpoint as it was written: its size and, if it was summed, its SHA-256."""

    nbytes: int
    sha256: str | None


def recorded_files(folder: Path) -> dict[str, FileEntry]:
    """The files that the moeify.json of ``folder`` lists, none where it lists none.

    Raises ``CheckpointError`` where the list has another form.
    """
    path = folder / RECORD_FILE
    if not os.path.lexists(path):
        return {}
    listed = read_json(resolve_inside(folder, RECORD_FILE)).get("files", {})
    try:
        for name in listed:
            check_relative(name)
        return {
            name: FileEntry(nbytes=int(entry["bytes"]), sha256=_digest(entry.get("sha256")))
            for name, entry in listed.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{RECORD_FILE} lists files in an unknown form", path=path) from error


def recorded_sums(folder: Path) -> dict[Path, str]:
    """SHA-256 by path, of the files in ``folder`` whose moeify.json lists one."""
    files = recorded_files(folder)
    return {folder / name: entry.sha256 for name, entry in files.items() if entry.sha256}


def _digest(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise ValueError(value)
    return value


def expert_sources(step: Step) -> list[dict[str, Any]]:
    """What a step made experts of, as it recorded it; ``experts`` are numbers, whatever a file says."""
    listed = step.results.get("sources")
    found = [source for source in listed if isinstance(source, dict)] if isinstance(listed, list) else []
    return [source | {"experts": _numbers(source.get("experts"))} for source in found]


def _numbers(listed: object) -> list[int]:
    return [n for n in listed if type(n) is int] if isinstance(listed, list | tuple) else []


def installed_versions(packages: Iterable[str] = _VERSIONED) -> dict[str, str]:
    """Versions of Python and of the ``packages`` that are installed, by default those that decide what is written."""
    found = {"python": platform.python_version()}
    for package in packages:
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
    parts = [value] if os.path.exists(value) else value.split(",")  # several files are named with commas
    return _TOKEN.sub("hf_***", ",".join(map(_without_folder, parts)))


def _without_folder(value: str) -> str:
    path = value.strip()
    is_path = path.startswith(("/", "~", "./", "../")) or ("/" in path and os.path.exists(path))
    return Path(path).name if is_path else value


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} does not belong in {RECORD_FILE}")
