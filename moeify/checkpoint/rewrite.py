"""Replacing a few tensors of a checkpoint while every other file stays the same file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Job, copy_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.staging import existing_parent
from moeify.checkpoint.weight_files import WEIGHTS_FILE
from moeify.checkpoint.writer import Shard, aligned_jobs, grouped

_FEW_BYTES = 64  # a guard


def plan_rewrite(
    checkpoint: Checkpoint,
    jobs: Iterable[Job],
    output: Path,
    max_shard_bytes: int | None = None,
    last: Iterable[Job] = (),
) -> PlannedFiles:
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
    held: dict[Path, list[StoredTensor]] = {path: [] for path in checkpoint.shards}
    for tensor in checkpoint.tensors.values():
        held[tensor.path].append(tensor)
    for path, stored in held.items():
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
    same = tuple(tensor for path, _ in (*linked, *copied) for tensor in held[path])
    return PlannedFiles(shards=tuple(shards), linked=tuple(linked), copied=tuple(copied), kept=same)
