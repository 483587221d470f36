"""Writing a planned checkpoint: shards, headers first, then the bytes in order, then the index."""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from moeify.checkpoint.chunks import Chunk, chunks
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import DTYPE_BITS, StoredTensor, encode_header
from moeify.checkpoint.jobs import Job, Literal, Piece, Tally
from moeify.checkpoint.makers import Maker, Makers
from moeify.checkpoint.output_file import ALIGNMENT, create_file, cut_file, is_memory
from moeify.checkpoint.weight_files import WEIGHTS_FILE
from moeify.errors import ConfigError
from moeify.progress import stage

T = TypeVar("T")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B", re.IGNORECASE)
_WORTH_A_PROCESS = 256 << 20
"""Bytes to compute for which another process is started: its start takes 0.2 CPU seconds."""
_WORTH_A_THREAD = 64 << 20
_MOST_THREADS = 4
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One safetensors file of the output and the jobs in it, in the order of their bytes."""

    file: str
    jobs: tuple[Job, ...]

    @cached_property
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


def plan_shards(jobs: Iterable[Job], max_shard_bytes: int, last: Iterable[Job] = ()) -> tuple[Shard, ...]:
    """Deal jobs into files of at most ``max_shard_bytes``; ``last`` gets a file of its own.

    A tensor larger than the limit gets a file of its own, as transformers does it.
    """
    groups = grouped(jobs, max_shard_bytes)
    if tail := list(last):
        groups.append(tail)
    if len(groups) == 1:
        return (Shard(file=WEIGHTS_FILE, jobs=aligned_jobs(groups[0])),)
    return tuple(
        Shard(file=f"model-{i:05d}-of-{len(groups):05d}.safetensors", jobs=aligned_jobs(group))
        for i, group in enumerate(groups, 1)
    )


def grouped(jobs: Iterable[Job], max_shard_bytes: int) -> list[list[Job]]:
    """Jobs in their order, in groups of at most ``max_shard_bytes`` or of one job."""
    groups: list[list[Job]] = []
    room = 0
    for job in jobs:
        if not groups or job.nbytes > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(job)
        room -= job.nbytes
    return groups


def aligned_jobs(jobs: Iterable[Job]) -> tuple[Job, ...]:
    """Wide dtypes first, so that every tensor starts on a multiple of its element size.

    Among them those that fill whole pages come first, so that chunks can be cut between them.
    """
    return tuple(sorted(jobs, key=lambda job: (-DTYPE_BITS[job.dtype], job.nbytes % ALIGNMENT > 0)))


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    check: Iterable[StoredTensor] = (),
    processes: int | None = None,
    threads: int | None = None,
) -> Tally:
    """Write ``shards`` into ``folder``; returns what noise survived.

    Every tensor in ``check`` is scanned for NaN and infinity first. Chunks are made by ``threads``
    and ``processes``, by default as many as are worth it, and written in place; memory holds two
    chunks for each. There are as many files at a time as threads. Raises ``CheckpointError`` and
    ``OSError``, leaving files behind: call it inside ``staged``.
    """
    with SourceFiles() as files:
        pieces = [piece for shard in shards for job in shard.jobs for piece in job.pieces]
        scanned = dict.fromkeys(tensor for piece in pieces for tensor in piece.scanned())
        checked = dict.fromkeys(tensor for tensor in check if tensor not in scanned)
        read = {tensor.path for piece in pieces for tensor in piece.sources()}
        for path in read | {tensor.path for tensor in checked}:
            files.handle(path)  # opened here, because handle() is for one thread
        if processes is None:
            processes = _processes(pieces)
        if threads is None:
            threads = 1 if processes else _threads(folder, shards)
        with Makers(files, processes, threads) as makers:
            stds = _read_first(makers, scanned, checked)
            makers.everyone(Maker.learn, stds)
            # In memory, to reserve room is most of the work, and threads share it.
            streams = (_chunks(folder, shard, threads == 1) for shard in shards)
            with stage("writing", sum(shard.nbytes for shard in shards), "bytes") as writing:
                queue = _Queue(makers, writing.advance)
                queue.write(_in_turn(streams, threads))
        for shard in shards:
            cut_file(folder / shard.file, shard.nbytes)
        files.check_unchanged()
    return queue.tally


def _read_first(
    makers: Makers, scanned: Collection[StoredTensor], checked: Collection[StoredTensor]
) -> dict[StoredTensor, float]:
    """Deviations of the tensors that noise is drawn for; those ``checked`` need only be finite."""
    stds: dict[StoredTensor, float] = {}
    with stage("checking weights", len(scanned) + len(checked), "tensors") as reading:
        for tensor, std in zip(scanned, makers.map(Maker.scan, scanned), strict=True):
            stds[tensor] = std
            reading.advance()
        for _ in makers.map(Maker.check_finite, checked):
            reading.advance()
    return stds


def _processes(pieces: Sequence[Piece]) -> int:
    """How many processes help with ``pieces``: with what is only copied, one waits for the disk."""
    computed = sum(piece.nbytes for piece in pieces if piece.computed)
    return min(7, (os.cpu_count() or 1) - 1, computed // _WORTH_A_PROCESS)


def _threads(folder: Path, shards: Sequence[Shard]) -> int:
    """How many threads copy: a disk is slower than one; memory takes one for each file."""
    large = sum(shard.nbytes >= _WORTH_A_THREAD for shard in shards)
    return max(1, min(_MOST_THREADS, os.cpu_count() or 1, large)) if is_memory(folder) else 1


def _chunks(folder: Path, shard: Shard, reserve: bool) -> Iterator[tuple[Path, Chunk]]:
    """The chunks of a file, which is there from the first one on."""
    path = folder / shard.file
    create_file(path, shard.nbytes, reserve=reserve)
    pieces = (piece for job in shard.jobs for piece in job.pieces)
    for chunk in chunks(itertools.chain([Literal(shard.header)], pieces)):
        yield path, chunk


def _in_turn(streams: Iterable[Iterator[T]], count: int) -> Iterator[T]:
    """What ``streams`` have, from ``count`` of them in turn: a file takes one writer at a time."""
    waiting = iter(streams)
    active = deque(itertools.islice(waiting, count))
    while active:
        stream = active.popleft()
        try:
            yield next(stream)
            active.append(stream)
        except StopIteration:
            active.extend(itertools.islice(waiting, 1))


class _Queue:
    """Chunks on their way, and what has come of those that are done."""

    def __init__(self, makers: Makers, progress: Callable[[int], None]) -> None:
        self._makers, self._progress = makers, progress
        self._pending: deque[tuple[Future[Tally], Chunk]] = deque()
        self.tally = Tally()

    def write(self, chunks: Iterable[tuple[Path, Chunk]]) -> None:
        """Write chunks into their files."""
        try:
            for path, chunk in chunks:
                if len(self._pending) >= 2 * self._makers.count:
                    self._collect()
                self._pending.append((self._makers.submit(Maker.write, path, chunk), chunk))
            while self._pending:
                self._collect()
            self._makers.everyone(Maker.finish)
        finally:
            for future, _ in self._pending:
                future.cancel()
            wait([future for future, _ in self._pending])

    def _collect(self) -> None:
        future, chunk = self._pending.popleft()
        self.tally.add(future.result())
        self._progress(chunk.nbytes)
