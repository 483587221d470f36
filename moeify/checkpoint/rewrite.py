"""Replacing a few tensors of a checkpoint while every other file stays the same file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moeify.checkpoint.header import StoredTensor, read_header
from moeify.checkpoint.jobs import Job, copy_of
from moeify.checkpoint.ledger import Ledger
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.staging import existing_parent
from moeify.checkpoint.weight_files import WEIGHTS_FILE
from moeify.checkpoint.writer import (
    Placed,
    Progress,
    Shard,
    aligned_jobs,
    grouped,
    verify_shards,
    write_index,
    write_shard_files,
)

__all__ = ["Rewrite", "plan_rewrite", "write_rewrite"]

_FEW_BYTES = 64  # a guard


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """Which files are linked or copied under which name, and which are written."""

    linked: tuple[tuple[Path, str], ...]
    copied: tuple[tuple[Path, str], ...]
    shards: tuple[Shard, ...]

    @property
    def bytes_written(self) -> int:
        """Bytes of the files that are new."""
        copied = sum(os.stat(path).st_size for path, _ in self.copied)
        return copied + sum(shard.nbytes for shard in self.shards)


def plan_rewrite(
    checkpoint: Checkpoint, jobs: Iterable[Job], output: Path, max_shard_bytes: int | None = None,
    last: Iterable[Job] = (),
) -> Rewrite:  # fmt: skip
    """Plan ``checkpoint`` with ``jobs`` in place of the tensors of the same names.

    A file without any of them is linked, or copied where ``output`` lies on another file system
    (unless its names are not those of the model: then it is written with these);
    one that mixes them with others is written again without them, and the jobs get a file of their
    own at the end, or several of ``max_shard_bytes``; ``last`` are jobs that get one more. The last
    file takes what would be left of another as a few numbers. So no name ever stands in two files.
    """
    new, tail = tuple(jobs), tuple(last)
    names = {job.name for job in (*new, *tail)}
    groups = [new] if max_shard_bytes is None else grouped(new, max_shard_bytes)
    kept: list[Path | tuple[Job, ...]] = []
    few: list[Job] = []
    for path in checkpoint.shards:
        stored = [tensor for tensor in checkpoint.tensors.values() if tensor.path == path]
        rest = [tensor for tensor in stored if tensor.name not in names]
        if len(rest) == len(stored) and not checkpoint.wrappers:
            kept.append(path)
        elif rest:
            left = [Job(t.name, t.dtype, t.shape, (copy_of(t, t.dtype),)) for t in rest]
            if sum(tensor.nbytes for tensor in rest) <= _FEW_BYTES:
                few += left
            else:
                kept.append(tuple(left))
    written = [tuple(part) for part in (*groups, tail) if part]
    parts = [*kept, *written[:-1], *((*part, *few) for part in written[-1:])]
    linked: list[tuple[Path, str]] = []
    copied: list[tuple[Path, str]] = []
    shards: list[Shard] = []
    device = os.stat(existing_parent(output)).st_dev
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        file = file if len(parts) > 1 else WEIGHTS_FILE
        if isinstance(part, Path):
            (linked if os.stat(part).st_dev == device else copied).append((part, file))
        else:
            shards.append(Shard(file=file, jobs=aligned_jobs(part)))
    return Rewrite(linked=tuple(linked), copied=tuple(copied), shards=tuple(shards))


def write_rewrite(
    folder: Path, plan: Rewrite, progress: Progress | None = None,
    check: Iterable[StoredTensor] = (), ledger: Ledger | None = None,
    recorded: Mapping[Path, str] | None = None,
) -> None:  # fmt: skip
    """Write, link and copy the files of ``plan`` into ``folder``, with their index.

    Tensors in ``check`` are scanned for NaN and infinity first. ``recorded`` are sums that the
    source knows of files that are linked.
    """
    ledger = ledger or Ledger()
    write_shard_files(folder, plan.shards, progress, check, ledger=ledger)
    verify_shards(folder, plan.shards)
    placed = [
        Placed(job.name, job.shape, job.nbytes, s.file) for s in plan.shards for job in s.jobs
    ]
    for path, file in plan.linked:
        if _link(path, folder / file):
            ledger.link(file, (recorded or {}).get(path))
        else:
            ledger.copy(path, folder, file)
    for path, file in plan.copied:
        ledger.copy(path, folder, file)
    for _, file in (*plan.linked, *plan.copied):
        placed += [
            Placed(t.name, t.shape, t.nbytes, file) for t in read_header(folder / file)[0].values()
        ]
    write_index(folder, placed)


def _link(source: Path, target: Path) -> bool:
    """Make a hard link; False where the file system has none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True
