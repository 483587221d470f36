"""Opening a checkpoint folder: config and headers, never the weights."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moeify.checkpoint.config_values import wrong_values
from moeify.checkpoint.header import StoredTensor, held_bytes, read_header
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.json_text import MAX_BYTES, read_json
from moeify.checkpoint.naming import some
from moeify.checkpoint.training_marks import check_gathered, unwrapped
from moeify.checkpoint.weight_files import (
    INDEX_FILE,
    Index,
    check_no_adapter,
    is_index,
    local_file,
    no_weights,
    read_index,
    unused_files,
)
from moeify.errors import CheckpointError, TensorNotFoundError

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its config and where every tensor lies.

    ``shards`` are the safetensors files in the order of the index, ``index_file`` its name.
    ``wrappers`` are what training put before the names in the files, of which ``tensors`` are rid.
    ``notes`` say what a user should know of how it was read.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    shards: tuple[Path, ...]
    index_file: str | None = None
    wrappers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config.json and all headers of ``folder``.

        Raises ``CheckpointError`` when the folder is no checkpoint, a shard is missing or
        damaged, index and shards disagree, or an adapter lies beside the model.
        """
        config = read_config(folder)
        first = local_file(folder, config)
        check_no_adapter(folder)
        index = read_index(folder, first) if is_index(first) else {}
        shards = _listed_files(folder, first, index) or [resolve_inside(folder, first)]
        tensors = _read_headers(folder, shards, index)
        absent = _absent(folder, tensors, index)
        check_gathered(tensors.values())
        tensors, wrappers = unwrapped(tensors)
        return cls(
            folder=folder,
            config=config,
            tensors=tensors,
            shards=tuple(shards),
            index_file=first if index else None,
            wrappers=wrappers,
            notes=tuple(reading_notes(first, unused_files(folder, first, index), absent, wrappers)),
        )

    def __getitem__(self, name: str) -> StoredTensor:
        """The tensor called ``name``; raises ``TensorNotFoundError``."""
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorNotFoundError(name, self.folder) from None


def _read_headers(folder: Path, shards: list[Path], index: Index) -> dict[str, StoredTensor]:
    room = Room(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        found = read_header(shard, room.left)[0]
        room.take(shard.relative_to(folder).as_posix(), found)
        for name, tensor in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} stands in two files: {tensors[name].path.name} and {shard.name}", path=folder
                )
            tensors[name] = tensor
    return tensors


def reading_notes(
    first: str, unused: Collection[str], absent: Collection[str], wrappers: Collection[str]
) -> Iterator[str]:
    """What a user should know of a checkpoint that is read from ``first`` on."""
    if unused:
        yield f"transformers loads {first}, and nothing of {some(unused)} beside it"
    if absent:
        yield f"{first} lists {len(absent)} tensors that no file holds: {some(absent)}"
    if wrappers:
        yield f"tensors are read without {' and '.join(wrappers)}, which training put before them"


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a tokenizer; transformers would make an empty one up without it."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def read_config(folder: Path, *, check: bool = True) -> dict[str, Any]:
    """config.json of a checkpoint folder; raises ``CheckpointError``.

    ``check`` refuses values that are of the wrong kind.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", path=folder)
    if not (folder / CONFIG_FILE).exists():
        raise no_weights(folder, None)
    config = read_json(resolve_inside(folder, CONFIG_FILE))
    if check:
        for _, _, sentence in wrong_values(config):
            raise CheckpointError(sentence, "mend config.json", path=folder / CONFIG_FILE)
    return config


class Room:
    """What is left of the memory that index and headers of one checkpoint may take.

    ``left`` are bytes. The index's strings give way to equal ones of the headers.
    """

    def __init__(self, index: Index) -> None:
        self.left = MAX_BYTES - sum(map(_names_bytes, index.values()))
        self._index = index

    def take(self, file: str, tensors: dict[str, StoredTensor]) -> None:
        """Count the ``tensors`` that were read from ``file``."""
        self.left -= held_bytes(tensors)
        if (names := self._index.get(file)) is not None:
            shared = [tensors[name].name if name in tensors else name for name in names]
            astray = [name for name in names if name not in tensors]
            self.left += _names_bytes(names) - _names_bytes(astray)
            self._index[file] = shared


def _names_bytes(names: list[str]) -> int:
    return sum(map(sys.getsizeof, names))


def _listed_files(folder: Path, name: str, index: Index) -> list[Path]:
    """The files that the index called ``name`` names; raises ``CheckpointError``."""
    for file in index:
        if not resolve_inside(folder, file).exists():
            raise CheckpointError(
                f"{name} names {file!r}, which is not in {folder}", "download the missing shard", path=folder
            )
    return [resolve_inside(folder, file) for file in index]


def _absent(folder: Path, tensors: dict[str, StoredTensor], index: Index) -> list[str]:
    """Tensors that the index lists and no file holds, as a tied one whose twin is stored.

    Raises ``CheckpointError`` where a tensor stands in another file than the index says.
    """
    absent = []
    for file, names in index.items():
        place = PurePosixPath(file).name
        for name in names:
            if name not in tensors:
                absent.append(name)
            elif tensors[name].path.name != place:
                raise CheckpointError(
                    f"{INDEX_FILE} places {name!r} in {file}, which does not hold it",
                    "download the checkpoint again, or delete a stale index",
                    path=folder,
                )
    return absent
