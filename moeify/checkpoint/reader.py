"""Opening a checkpoint folder: config and headers, never the weights."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moeify.checkpoint.config_values import wrong_values
from moeify.checkpoint.header import StoredTensor, held_bytes, read_header
from moeify.checkpoint.json_text import MAX_BYTES, read_json
from moeify.errors import CheckpointError, TensorNotFoundError

__all__ = [
    "Checkpoint",
    "check_relative",
    "conversion_hint",
    "has_tokenizer",
    "read_config",
    "resolve_inside",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_LONGEST_NAME, _LONGEST_PATH = 255, 1024
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its config and where every tensor lies.

    ``shards`` are the safetensors files in the order of the index.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    shards: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config.json and all headers of ``folder``.

        Raises ``CheckpointError`` when the folder is no checkpoint, a shard is missing or
        damaged, or index and shards disagree.
        """
        config = read_config(folder)
        index = read_index(folder) if (folder / INDEX_FILE).exists() else None
        shards = find_shards(folder, index)
        room = Room(index or {})
        tensors: dict[str, StoredTensor] = {}
        for shard in shards:
            found = read_header(shard, room.left)[0]
            room.take(shard.relative_to(folder).as_posix(), found)
            for name, tensor in found.items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {name!r} stands in two files:"
                        f" {tensors[name].path.name} and {shard.name}",
                        path=folder,
                    )
                tensors[name] = tensor
        if index is not None:
            check_index(folder, tensors, index)
        return cls(folder=folder, config=config, tensors=tensors, shards=tuple(shards))

    def __getitem__(self, name: str) -> StoredTensor:
        """The tensor called ``name``; raises ``TensorNotFoundError``."""
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorNotFoundError(name, self.folder) from None


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
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {CONFIG_FILE}",
            "name the folder that transformers' save_pretrained wrote, or a Hub id",
            path=folder,
        )
    config = read_json(resolve_inside(folder, CONFIG_FILE))
    if check:
        for _, _, sentence in wrong_values(config):
            raise CheckpointError(sentence, "mend config.json", path=folder / CONFIG_FILE)
    return config


def conversion_hint(source: str, config: dict[str, Any]) -> str:
    """The command that turns a checkpoint's pickled weights into safetensors.

    It loads the very class that config.json names, because AutoModel would drop the head.
    """
    named = config.get("architectures") or ["AutoModel"]
    name = str(named[0]) if isinstance(named, list) else "AutoModel"
    target = f"./{source.rstrip('/').rsplit('/', 1)[-1]}-safetensors"
    code = (
        f"from transformers import {name if name.isidentifier() else 'AutoModel'} as M,"
        f" AutoTokenizer as T; s, t = {json.dumps(source)}, {json.dumps(target)};"
        " M.from_pretrained(s).save_pretrained(t); T.from_pretrained(s).save_pretrained(t)"
    )
    return f"convert it once: python -c {shlex.quote(code)}"


def check_relative(name: str) -> None:
    """Raise ``CheckpointError`` where ``name`` is no name of a file inside a folder."""
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise CheckpointError(f"{name[:200]!r} leads out of the checkpoint folder")
    if len(name.encode()) > _LONGEST_PATH or any(
        len(part.encode()) > _LONGEST_NAME for part in pure.parts
    ):
        raise CheckpointError(
            f"{name[:40]!r}... is longer than the {_LONGEST_NAME} bytes that a file's name may have"
        )


def resolve_inside(folder: Path, name: str) -> Path:
    """The path of file ``name`` in ``folder``, refused when it leads out of it.

    Links are followed only inside the folder, or into the ``blobs`` folder of the
    Hugging Face cache to which a snapshot belongs.
    """
    check_relative(name)
    path = folder / name
    root, target = folder.resolve(), path.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{name!r} is a link out of the checkpoint folder",
            "put the file itself in its place, if it belongs to the checkpoint",
            path=path,
        )
    return path


Index = dict[str, list[str]]
"""The names of the tensors in each file, as an index has it."""


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


def find_shards(folder: Path, index: Index | None) -> list[Path]:
    """The safetensors files of a folder, by the index where there is one."""
    if index is not None:
        for name in index:
            if not resolve_inside(folder, name).exists():
                raise CheckpointError(
                    f"{INDEX_FILE} names {name!r}, which is not in {folder}",
                    "download the missing shard",
                    path=folder,
                )
        return [resolve_inside(folder, name) for name in index]
    if (folder / WEIGHTS_FILE).exists():
        return [resolve_inside(folder, WEIGHTS_FILE)]
    for pattern in _PICKLES:
        if found := next(folder.glob(pattern), None):
            raise CheckpointError(
                f"{folder} holds {found.name} and no safetensors file",
                conversion_hint(str(folder), read_config(folder)),
                path=folder,
            )
    raise CheckpointError(
        f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}",
        "name the folder that holds the weights",
        path=folder,
    )


def read_index(folder: Path) -> Index:
    """The index of a folder; raises ``CheckpointError``."""
    weight_map = read_json(resolve_inside(folder, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map", path=folder)
    return by_file(weight_map, folder)


def by_file(weight_map: dict[str, Any], folder: Path) -> Index:
    """A ``weight_map`` from tensor to file, turned round; raises ``CheckpointError``."""
    index: Index = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{INDEX_FILE}: weight_map must name files", path=folder)
        index.setdefault(file, []).append(name)
    return index


def check_index(folder: Path, tensors: dict[str, StoredTensor], index: Index) -> None:
    """Raise ``CheckpointError`` where the index names a tensor that its shard lacks."""
    for file, names in index.items():
        place = PurePosixPath(file).name
        for name in names:
            if name not in tensors or tensors[name].path.name != place:
                raise CheckpointError(
                    f"{INDEX_FILE} places {name!r} in {file}, which does not hold it",
                    "download the checkpoint again, or delete a stale index",
                    path=folder,
                )
