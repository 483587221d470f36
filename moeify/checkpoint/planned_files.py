"""The weight files of an output: what they will hold, and how they get there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moeify.checkpoint.copying import copy_file
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Tally
from moeify.checkpoint.weight_files import INDEX_FILE
from moeify.checkpoint.writer import Shard, write_shards
from moeify.errors import OutputError


@dataclass(frozen=True, kw_only=True)
class PlannedFiles:
    """Which files are written, and which of the source's are linked or copied under which name.

    ``kept`` are the tensors in those of the source.
    """

    shards: tuple[Shard, ...]
    linked: tuple[tuple[Path, str], ...] = ()
    copied: tuple[tuple[Path, str], ...] = ()
    kept: tuple[StoredTensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the files that are new."""
        copied = sum(os.stat(path).st_size for path, _ in self.copied)
        return copied + sum(shard.nbytes for shard in self.shards)

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor, with the name of the file that it will lie in; no place in it."""
        for shard in self.shards:
            file = Path(shard.file)
            for job in shard.jobs:
                yield StoredTensor(job.name, job.dtype, job.shape, file, 0, job.nbytes)
        files = {path: Path(file) for path, file in (*self.linked, *self.copied)}
        for tensor in self.kept:
            yield replace(tensor, path=files[tensor.path], start=0)


def write_files(folder: Path, files: PlannedFiles, check: Iterable[StoredTensor] = ()) -> Tally:
    """Write, link and copy ``files`` into ``folder``, with their index; see ``write_shards``."""
    tally = write_shards(folder, files.shards, check)
    for path, file in files.linked:
        if not _link(path, folder / file):
            copy_file(path, folder / file)
    for path, file in files.copied:
        copy_file(path, folder / file)
    _write_index(folder, files)
    return tally


def _link(source: Path, target: Path) -> bool:
    """Make a hard link; False where the file system has none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def _write_index(folder: Path, files: PlannedFiles) -> None:
    """Write model.safetensors.index.json, unless there is one file only."""
    if len(files.shards) + len(files.linked) + len(files.copied) == 1:
        return
    places: dict[str, str] = {}
    nbytes = parameters = 0
    for tensor in files.tensors():
        places[tensor.name] = tensor.path.name
        nbytes, parameters = nbytes + tensor.nbytes, parameters + math.prod(tensor.shape)
    document = {
        "metadata": {"total_size": nbytes, "total_parameters": parameters},
        "weight_map": dict(sorted(places.items())),
    }
    (folder / INDEX_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def check_written(files: PlannedFiles, found: Mapping[str, StoredTensor]) -> None:
    """Raise ``OutputError`` unless headers that were read back hold what was planned."""
    count = 0
    for tensor in files.tensors():
        count += 1
        stored = found.get(tensor.name)
        if stored is None or (stored.dtype, stored.shape, stored.path.name) != (
            tensor.dtype,
            tensor.shape,
            tensor.path.name,
        ):
            raise _other_than_planned(tensor.path.name, tensor.name)
    if count != len(found):
        raise _other_than_planned("the output", f"{count} tensors")


def _other_than_planned(file: str, what: str) -> OutputError:
    return OutputError(
        f"{file} came back from the disk without {what} as it was planned; nothing was kept",
        "check the disk, then run it again; if it stays, report this as a bug",
    )
