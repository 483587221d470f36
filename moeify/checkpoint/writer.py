"""Writing a planned checkpoint: shards, headers first, then the bytes in order, then the index."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import DTYPE_BITS, StoredTensor, encode_header, read_header
from moeify.checkpoint.jobs import Blend, Job, Tally
from moeify.checkpoint.reader import INDEX_FILE, WEIGHTS_FILE
from moeify.errors import CheckpointError, ConfigError

__all__ = [
    "Placed",
    "Progress",
    "Shard",
    "parse_size",
    "place",
    "plan_shards",
    "verify_shards",
    "write_index",
    "write_shard_files",
    "write_shards",
]

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One safetensors file of the output and the jobs in it, in the order of their bytes."""

    file: str
    jobs: tuple[Job, ...]

    @property
    def header(self) -> bytes:
        """The bytes before the first tensor."""
        return encode_header((job.name, job.dtype, job.shape) for job in self.jobs)

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(job.nbytes for job in self.jobs)


def parse_size(text: str) -> int:
    """Bytes from ``5GB``, ``512MiB`` and the like; raises ``ConfigError``."""
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"{text!r} is no size", "write it as 5GB, 500MB or 2GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].upper()])


def plan_shards(
    jobs: Iterable[Job], max_shard_bytes: int, last: Iterable[Job] = ()
) -> tuple[Shard, ...]:
    """Deal jobs into files of at most ``max_shard_bytes``; ``last`` gets a file of its own.

    A tensor larger than the limit gets a file of its own, as transformers does it.
    """
    groups: list[list[Job]] = []
    room = 0
    for job in jobs:
        if not groups or job.nbytes > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(job)
        room -= job.nbytes
    if tail := list(last):
        groups.append(tail)
    if len(groups) == 1:
        return (Shard(file=WEIGHTS_FILE, jobs=_aligned(groups[0])),)
    return tuple(
        Shard(file=f"model-{i:05d}-of-{len(groups):05d}.safetensors", jobs=_aligned(group))
        for i, group in enumerate(groups, 1)
    )


def _aligned(jobs: list[Job]) -> tuple[Job, ...]:
    """Wide dtypes first, so that every tensor starts on a multiple of its element size."""
    return tuple(sorted(jobs, key=lambda job: -DTYPE_BITS[job.dtype]))


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and the file it lies in, as the index lists it."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


def write_shards(
    folder: Path, shards: Sequence[Shard], progress: Progress | None = None,
    check: Iterable[StoredTensor] = (), threads: int | None = None,
) -> Tally:  # fmt: skip
    """Write ``shards`` and their index into ``folder`` and read their headers back.

    See ``write_shard_files``.
    """
    tally = write_shard_files(folder, shards, progress, check, threads)
    verify_shards(folder, shards)
    write_index(folder, place(shards))
    return tally


def write_shard_files(
    folder: Path, shards: Sequence[Shard], progress: Progress | None = None,
    check: Iterable[StoredTensor] = (), threads: int | None = None,
) -> Tally:  # fmt: skip
    """Write ``shards`` into ``folder``; returns what noise survived.

    Every tensor in ``check`` is scanned for NaN and infinity first. Blocks are made by a few
    threads and written in place; memory holds one block a thread. Raises ``CheckpointError``
    and ``OSError``, leaving files behind: call it inside ``staged``.
    """
    workers = threads or min(4, os.cpu_count() or 1)
    total = sum(job.nbytes for shard in shards for job in shard.jobs)
    with SourceFiles() as files, ThreadPoolExecutor(workers) as pool:
        noisy = _noisy_sources(shards)
        tensors = list(dict.fromkeys([*noisy, *check]))
        for path in {source.path for source in _all_sources(shards)} | {t.path for t in tensors}:
            files.handle(path)  # opened here, because handle() is for one thread
        files.stds.update(zip(noisy, pool.map(files.scan, noisy), strict=True))
        for _ in pool.map(files.check_finite, [t for t in tensors if t not in noisy]):
            pass
        tally = _Run(files, pool, workers, total, progress).write(folder, shards)
    return tally


def _all_sources(shards: Sequence[Shard]) -> Iterable[StoredTensor]:
    for shard in shards:
        for job in shard.jobs:
            for piece in job.pieces:
                yield from piece.sources()


def _noisy_sources(shards: Sequence[Shard]) -> dict[StoredTensor, None]:
    return {
        piece.terms[0][0].tensor: None
        for shard in shards
        for job in shard.jobs
        for piece in job.pieces
        if isinstance(piece, Blend) and piece.noise
    }


class _Run:
    """The state of one pass over the pieces."""

    def __init__(
        self, files: SourceFiles, pool: ThreadPoolExecutor,
        workers: int, total: int, progress: Progress | None,
    ) -> None:  # fmt: skip
        self.files, self.pool = files, pool
        self.limit, self.total, self.progress = 2 * workers, total, progress
        self.done = 0
        self.tally = Tally()
        self.pending: dict[Future[Tally | None], int] = {}

    def write(self, folder: Path, shards: Sequence[Shard]) -> Tally:
        try:
            for shard in shards:
                self._write_shard(folder / shard.file, shard)
        finally:
            for future in self.pending:
                future.cancel()
            wait(self.pending)
        return self.tally

    def _write_shard(self, path: Path, shard: Shard) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            header = shard.header
            os.pwrite(handle, header, 0)
            os.truncate(handle, shard.nbytes)
            offset = len(header)
            for job in shard.jobs:
                for piece in job.pieces:
                    for span in piece.spans():
                        self._submit(piece.write, span, handle, offset)
                    offset += piece.nbytes
            while self.pending:
                self._collect()
        finally:
            for future in self.pending:
                future.cancel()
            wait(self.pending)  # nobody may write to a handle that is closed and used again
            os.close(handle)

    def _submit(
        self, write: Callable[..., Tally | None], span: tuple[int, int], handle: int, offset: int
    ) -> None:
        while len(self.pending) >= self.limit:
            self._collect()
        future = self.pool.submit(write, self.files, span, handle, offset)
        self.pending[future] = span[1] - span[0]

    def _collect(self) -> None:
        finished, _ = wait(self.pending, return_when=FIRST_COMPLETED)
        for future in finished:
            self.done += self.pending.pop(future)
            if tally := future.result():
                self.tally.add(tally)
        if self.progress:
            self.progress(self.done, self.total)


def place(shards: Sequence[Shard]) -> list[Placed]:
    """Where every tensor of ``shards`` lies."""
    return [Placed(job.name, job.shape, job.nbytes, s.file) for s in shards for job in s.jobs]


def write_index(folder: Path, placed: Sequence[Placed]) -> None:
    """Write model.safetensors.index.json, unless there is one file only."""
    if len({tensor.file for tensor in placed}) == 1:
        return
    document = {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in placed),
            "total_parameters": sum(math.prod(tensor.shape) for tensor in placed),
        },
        "weight_map": {tensor.name: tensor.file for tensor in sorted(placed, key=_name)},
    }
    (folder / INDEX_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _name(tensor: Placed) -> str:
    return tensor.name


def verify_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Read every written header back and hold it against the plan; raises ``CheckpointError``."""
    for shard in shards:
        written, _ = read_header(folder / shard.file)
        planned = {job.name: (job.dtype, job.shape) for job in shard.jobs}
        found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in written.values()}
        if found != planned:
            raise CheckpointError(
                f"{shard.file} does not hold what was planned", "report this as a bug"
            )
