"""Opening a checkpoint folder: config and headers, never the weights."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moeify.checkpoint.header import StoredTensor, read_header
from moeify.errors import CheckpointError, TensorNotFoundError

__all__ = [
    "Checkpoint",
    "conversion_hint",
    "has_tokenizer",
    "read_config",
    "read_json",
    "resolve_inside",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_JSON_BYTES = 64_000_000
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
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
        shards = find_shards(folder)
        tensors: dict[str, StoredTensor] = {}
        for shard in shards:
            for name, tensor in read_header(shard)[0].items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {name!r} stands in two files:"
                        f" {tensors[name].path.name} and {shard.name}",
                        path=folder,
                    )
                tensors[name] = tensor
        check_index(folder, tensors)
        return cls(folder=folder, config=config, tensors=tensors, shards=tuple(shards))

    def __getitem__(self, name: str) -> StoredTensor:
        """The tensor called ``name``; raises ``TensorNotFoundError``."""
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorNotFoundError(name, self.folder) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; raises ``CheckpointError``."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing from {path.parent}", path=path)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes", path=path)
        document = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}", path=path) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON", path=path) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object", path=path)
    return document


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` holds a tokenizer; transformers would make an empty one up without it."""
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder; raises ``CheckpointError``."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", path=folder)
    if not (folder / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {CONFIG_FILE}",
            "name the folder that transformers' save_pretrained wrote, or a Hub id",
            path=folder,
        )
    return read_json(resolve_inside(folder, CONFIG_FILE))


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


def resolve_inside(folder: Path, name: str) -> Path:
    """The path of file ``name`` in ``folder``, refused when it leads out of it.

    Links are followed only inside the folder, or into the ``blobs`` folder of the
    Hugging Face cache to which a snapshot belongs.
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise CheckpointError(f"{name!r} leads out of the checkpoint folder", path=folder)
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


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by the index where there is one."""
    if (folder / INDEX_FILE).exists():
        names = list(dict.fromkeys(read_weight_map(folder).values()))
        for name in names:
            if not resolve_inside(folder, name).exists():
                raise CheckpointError(
                    f"{INDEX_FILE} names {name!r}, which is not in {folder}",
                    "download the missing shard",
                    path=folder,
                )
        return [resolve_inside(folder, name) for name in names]
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


def read_weight_map(folder: Path) -> dict[str, str]:
    """The index's map from tensor name to file name; raises ``CheckpointError``."""
    weight_map = read_json(resolve_inside(folder, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map", path=folder)
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{INDEX_FILE}: weight_map must name files", path=folder)
    return weight_map


def check_index(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    """Raise ``CheckpointError`` where the index names a tensor that its shard lacks."""
    if not (folder / INDEX_FILE).exists():
        return
    for name, file in read_weight_map(folder).items():
        if name not in tensors or tensors[name].path.name != PurePosixPath(file).name:
            raise CheckpointError(
                f"{INDEX_FILE} places {name!r} in {file}, which does not hold it",
                "download the checkpoint again, or delete a stale index",
                path=folder,
            )
