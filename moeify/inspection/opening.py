"""Opening a checkpoint for inspection: whatever can be read is, and what cannot is a finding."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from moeify.checkpoint.config_values import wrong_values
from moeify.checkpoint.header import StoredTensor, read_header, salvage_header
from moeify.checkpoint.reader import (
    INDEX_FILE,
    Index,
    Room,
    find_shards,
    read_config,
    read_index,
    resolve_inside,
)
from moeify.checkpoint.source import Source
from moeify.errors import CheckpointError
from moeify.families.problems import Problem, some
from moeify.provenance.record import RECORD_FILE, Record

__all__ = ["Opened", "Shard", "compare_index", "drop_wrong_values", "open_folder"]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One weights file. ``nbytes`` is its size, ``tensors`` how many it holds."""

    name: str
    nbytes: int
    tensors: int


@dataclass(kw_only=True)
class Opened:
    """Headers and config of a checkpoint, as far as they can be read, and what is wrong so far."""

    name: str
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    record: Record | None = None
    problems: list[Problem] = field(default_factory=list)

    def report(self, kind: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind=kind, message=message))

    def add(self, name: str, nbytes: int, tensors: dict[str, StoredTensor]) -> None:
        """Take over the tensors of one weights file."""
        twice = tensors.keys() & self.tensors.keys()
        if twice:
            other = self.tensors[min(twice)].path.name
            self.report(
                "duplicate_tensor",
                f"{len(twice)} tensors stand in {other} and again in {name}: {some(twice)}",
            )
        self.tensors |= {key: value for key, value in tensors.items() if key not in twice}
        self.shards.append(Shard(name=name, nbytes=nbytes, tensors=len(tensors)))


def open_folder(source: Source) -> Opened:
    """Everything that the headers in a local folder say.

    Raises ``CheckpointError`` only when neither config.json nor any weights file can be read.
    """
    opened = Opened(name=source.name, revision=source.revision, config={})
    unreadable = _read_config(opened, source.folder)
    paths, index = _weight_files(opened, source.folder, unreadable)
    room = Room(index or {})
    for path in paths:
        _add_file(opened, path, room, path.relative_to(source.folder).as_posix())
    if unreadable is not None and not opened.tensors:
        raise unreadable
    if index is not None:
        compare_index(opened, index)
    opened.record = _read_record(opened, source)
    return opened


def _read_config(opened: Opened, folder: Path) -> CheckpointError | None:
    try:
        opened.config = read_config(folder, check=False)
    except CheckpointError as error:
        opened.report("config", error.message)
        return error
    drop_wrong_values(opened)
    return None


def drop_wrong_values(opened: Opened) -> None:
    """Note every value of config.json that is of the wrong kind, and go on without it."""
    for section, key, sentence in list(wrong_values(opened.config)):
        opened.report("config", sentence)
        section.pop(key, None)


def _weight_files(
    opened: Opened, folder: Path, unreadable: CheckpointError | None
) -> tuple[list[Path], Index | None]:
    """The weights files that are there, and the index where it can be read."""
    present = sorted(folder.glob("model*.safetensors"))
    if not (folder / INDEX_FILE).exists():
        if len(present) > 1:
            opened.report(
                "index", f"{len(present)} weights files and no {INDEX_FILE}: no class loads them"
            )
            return present, None
        try:
            return find_shards(folder, None), None
        except CheckpointError as error:
            raise unreadable or error from None
    try:
        index = read_index(folder)
    except CheckpointError as error:
        opened.report("index", error.message)
        return present, None
    paths = [path for name in index
             if (path := _listed_file(opened, folder, name)) is not None]  # fmt: skip
    stray = {path.name for path in present} - {path.name for path in paths}
    if stray:
        opened.report("index", f"{INDEX_FILE} does not name {some(stray)}: nothing loads it")
    return paths, index


def _listed_file(opened: Opened, folder: Path, name: str) -> Path | None:
    try:
        path = resolve_inside(folder, name)
    except CheckpointError as error:
        opened.report("index", error.message)
        return None
    if not path.exists():
        opened.report("missing_shard", f"{INDEX_FILE} names {name!r}, which is not there")
        return None
    return path


def _add_file(opened: Opened, path: Path, room: Room, file: str) -> None:
    try:
        tensors, _ = read_header(path, room.left)
    except CheckpointError as error:
        opened.report("damaged_shard", error.message)
        tensors = salvage_header(path, room.left)
    room.take(file, tensors)
    nbytes = path.stat().st_size if path.is_file() else 0
    opened.add(path.name, nbytes, tensors)


def compare_index(opened: Opened, index: Index) -> None:
    """Note where the index and the files disagree."""
    there = {shard.name for shard in opened.shards}
    # Tensors of one file share one Path object: its identity is a cheaper key than its hash.
    paths = {id(stored.path): stored.path for stored in opened.tensors.values()}
    names_of = {key: path.name for key, path in paths.items()}
    astray: dict[str, list[str]] = {}
    found = 0
    for file, names in index.items():
        if (place := PurePosixPath(file).name) not in there:
            continue
        for name in names:
            stored = opened.tensors.get(name)
            if stored is None or names_of[id(stored.path)] != place:
                astray.setdefault(place, []).append(name)
            else:
                found += 1
    for place, names in sorted(astray.items()):
        opened.report(
            "index",
            f"{INDEX_FILE} places {len(names)} tensors in {place} that it lacks: {some(names)}",
        )
    if found == len(opened.tensors):  # the usual case, which needs no second set of all names
        return
    listed = {name for names in index.values() for name in names}
    unlisted = [name for name in opened.tensors if name not in listed]
    if unlisted:
        opened.report(
            "index",
            f"{INDEX_FILE} does not list {len(unlisted)} tensors that the files hold:"
            f" {some(unlisted)}",
        )


def _read_record(opened: Opened, source: Source) -> Record | None:
    if not (source.folder / RECORD_FILE).exists():
        return None
    try:
        return Record.read(source)
    except CheckpointError as error:
        opened.report("provenance", error.message)
        return None
