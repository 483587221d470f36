"""Opening a checkpoint for inspection: whatever can be read is, and what cannot is a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from moeify.checkpoint.config_values import wrong_values
from moeify.checkpoint.header import StoredTensor, read_header, salvage_header
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.naming import some
from moeify.checkpoint.reader import Room, read_config, reading_notes
from moeify.checkpoint.source import Source
from moeify.checkpoint.training_marks import check_gathered, unwrapped
from moeify.checkpoint.weight_files import (
    INDEX_FILE,
    Index,
    check_no_adapter,
    is_index,
    local_file,
    read_index,
    unused_files,
)
from moeify.errors import CheckpointError
from moeify.families.problems import Problem
from moeify.provenance.record import RECORD_FILE, Record


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
    notes: list[str] = field(default_factory=list)

    def report(self, kind: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind=kind, message=message))

    def add(self, name: str, nbytes: int, tensors: dict[str, StoredTensor]) -> None:
        """Take over the tensors of one weights file."""
        twice = tensors.keys() & self.tensors.keys()
        if twice:
            other = self.tensors[min(twice)].path.name
            self.report(
                "duplicate_tensor", f"{len(twice)} tensors stand in {other} and again in {name}: {some(twice)}"
            )
        self.tensors |= {key: value for key, value in tensors.items() if key not in twice}
        self.shards.append(Shard(name=name, nbytes=nbytes, tensors=len(tensors)))


def open_folder(source: Source) -> Opened:
    """Everything that the headers in a local folder say.

    Raises ``CheckpointError`` only when neither config.json nor any weights file can be read.
    """
    opened = Opened(name=source.name, revision=source.revision, config={})
    unreadable = _read_config(opened, source.folder)
    paths, first, index = _weight_files(opened, source.folder, unreadable)
    room = Room(index or {})
    for path in paths:
        _add_file(opened, path, room, path.relative_to(source.folder).as_posix())
    if unreadable is not None and not opened.tensors:
        raise unreadable
    absent = [] if index is None else compare_index(opened, index)
    _find(opened, "adapter", lambda: check_no_adapter(source.folder))
    wrappers = drop_training_marks(opened)
    unused = unused_files(source.folder, first, ()) if index is None and first else []
    opened.notes += reading_notes(first, unused, absent, wrappers)
    opened.record = _read_record(opened, source)
    return opened


def _find(opened: Opened, kind: str, check: Callable[[], None]) -> None:
    try:
        check()
    except CheckpointError as error:
        opened.report(kind, error.message)


def drop_training_marks(opened: Opened) -> tuple[str, ...]:
    """Take the names of wrappers off the tensors' names; returns what was taken off."""
    _find(opened, "empty_tensors", lambda: check_gathered(opened.tensors.values()))
    opened.tensors, wrappers = unwrapped(opened.tensors)
    return wrappers


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
) -> tuple[list[Path], str, Index | None]:
    """The weights files that are there, the first one or its index, and what that lists."""
    present = sorted(folder.glob("model*.safetensors"))
    try:
        first = local_file(folder, opened.config)
    except CheckpointError as error:
        if len(present) <= 1:
            raise unreadable or error from None
        opened.report("index", f"{len(present)} weights files and no {INDEX_FILE}: no class loads them")
        return present, "", None
    if not is_index(first):
        return [resolve_inside(folder, first)], first, None
    try:
        index = read_index(folder, first)
    except CheckpointError as error:
        opened.report("index", error.message)
        return present, "", None
    paths = [path for name in index if (path := _listed_file(opened, folder, name)) is not None]
    if stray := unused_files(folder, first, index):
        opened.report("index", f"{first} does not name {some(stray)}: nothing loads it")
    return paths, first, index


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


def compare_index(opened: Opened, index: Index) -> list[str]:
    """Note where the index and the files disagree; returns what it lists and no file holds."""
    there = {shard.name for shard in opened.shards}
    # Tensors of one file share one Path object: its identity is a cheaper key than its hash.
    paths = {id(stored.path): stored.path for stored in opened.tensors.values()}
    names_of = {key: path.name for key, path in paths.items()}
    astray: dict[str, list[str]] = {}
    absent: list[str] = []
    found = 0
    for file, names in index.items():
        if (place := PurePosixPath(file).name) not in there:
            continue
        for name in names:
            stored = opened.tensors.get(name)
            if stored is None:
                absent.append(name)
            elif names_of[id(stored.path)] != place:
                astray.setdefault(place, []).append(name)
            else:
                found += 1
    for place, names in sorted(astray.items()):
        opened.report("index", f"{INDEX_FILE} places {len(names)} tensors in {place} that it lacks: {some(names)}")
    if found != len(opened.tensors):  # the usual case needs no second set of all names
        _report_unlisted(opened, index)
    return absent


def _report_unlisted(opened: Opened, index: Index) -> None:
    listed = {name for names in index.values() for name in names}
    unlisted = [name for name in opened.tensors if name not in listed]
    if unlisted:
        opened.report(
            "index", f"{INDEX_FILE} does not list {len(unlisted)} tensors that the files hold: {some(unlisted)}"
        )


def _read_record(opened: Opened, source: Source) -> Record | None:
    if not (source.folder / RECORD_FILE).exists():
        return None
    try:
        return Record.read(source)
    except CheckpointError as error:
        opened.report("provenance", error.message)
        return None
