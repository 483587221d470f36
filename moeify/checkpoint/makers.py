"""Who scans sources and makes chunks: threads of this process, and others beside it."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from moeify.checkpoint.chunks import CHUNK_BYTES, Chunk
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Tally
from moeify.checkpoint.output_file import ALIGNMENT, OutputFile, aligned_buffer
from moeify.checkpoint.worker_process import WorkerProcess

P = ParamSpec("P")
T = TypeVar("T")


class Maker:
    """One pair of hands: makes a chunk while the one before goes to the disk."""

    def __init__(self, files: SourceFiles) -> None:
        self._files = files
        self._buffers = itertools.cycle([aligned_buffer(CHUNK_BYTES) for _ in range(2)])
        self._target: OutputFile | None = None
        self._disk = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    @classmethod
    def inheriting(cls, handles: Mapping[Path, int]) -> Maker:
        """A maker in a process that inherited the open source files."""
        return cls(SourceFiles(handles))

    def scan(self, tensor: StoredTensor) -> float:
        """See ``SourceFiles.scan``."""
        return self._files.scan(tensor)

    def check_finite(self, tensor: StoredTensor) -> None:
        """See ``SourceFiles.check_finite``."""
        self._files.check_finite(tensor)

    def learn(self, stds: Mapping[StoredTensor, float]) -> None:
        """Take over the standard deviations that ``scan`` found."""
        self._files.stds.update(stds)

    def write(self, path: Path, chunk: Chunk) -> Tally:
        """Make ``chunk`` and begin to write it to the file ``path``, which exists.

        Returns what its noise came to.
        Raises what went wrong with the chunk before.
        """
        buffer, tally, done = next(self._buffers), Tally(), 0
        for piece, start, stop in chunk.parts:
            survived = piece.fill(self._files, start, buffer[done : done + stop - start])
            if survived:
                tally.add(survived)
            done += stop - start
        self.finish()
        target = self._open(path)
        padded = buffer[: -(-done // ALIGNMENT) * ALIGNMENT]
        self._writing = self._disk.submit(target.write, padded, chunk.position)
        return tally

    def finish(self) -> None:
        """Wait until everything is written; raises what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Wait, whatever comes of it, and close the file that was written to last."""
        self._disk.shutdown()
        if self._target is not None:
            self._target.close()

    def _open(self, path: Path) -> OutputFile:
        if self._target is None or self._target.path != path:
            if self._target is not None:
                self._target.close()
            self._target = OutputFile(path)
        return self._target


class Makers:
    """``threads`` makers here and ``processes`` others, each busy with one task at a time.

    One keeps a disk busy, and memory takes several. What is computed is worth processes and not
    threads: NumPy takes the interpreter back after every operation, so that threads would mostly
    wait for one another. Close it before the source files, and before the outputs are removed.
    """

    def __init__(self, files: SourceFiles, processes: int, threads: int = 1) -> None:
        self.count = threads + processes
        self._idle: queue.SimpleQueue[Maker | WorkerProcess[Maker]] = queue.SimpleQueue()
        with ExitStack() as stack:
            for _ in range(processes):  # first, because they take a while to start
                worker = WorkerProcess(Maker.inheriting, files.handles.values(), files.handles)
                stack.callback(worker.close)
                self._idle.put(worker)
            for _ in range(threads):
                maker = Maker(files)
                stack.callback(maker.close)
                self._idle.put(maker)
            self._pool = stack.enter_context(ThreadPoolExecutor(self.count))
            self._stack = stack.pop_all()

    def __enter__(self) -> Makers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def submit(self, task: Callable[Concatenate[Maker, P], T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``task(maker, ...)`` done by the next maker that is free."""

        def work() -> T:
            maker = self._idle.get()
            try:
                return _do(maker, task, *args, **kwargs)
            finally:
                self._idle.put(maker)

        return self._pool.submit(work)

    def map(self, task: Callable[[Maker, StoredTensor], T], tensors: Iterable[StoredTensor]) -> Iterator[T]:
        """``task`` for all ``tensors``; results in their order."""
        futures = [self.submit(task, tensor) for tensor in tensors]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def everyone(self, task: Callable[Concatenate[Maker, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """``task`` for every maker; none may be busy."""
        for _ in range(self.count):
            maker = self._idle.get()
            try:
                _do(maker, task, *args, **kwargs)
            finally:
                self._idle.put(maker)


def _do(
    maker: Maker | WorkerProcess[Maker], task: Callable[Concatenate[Maker, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    if isinstance(maker, WorkerProcess):
        return maker.call(task, *args, **kwargs)
    return task(maker, *args, **kwargs)
