"""Wall time and peak memory of whole processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Measure", "measure", "median", "spread"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One process from start to exit, its children included.

    ``cpu_seconds`` are user and system time together, which a busy machine disturbs least;
    ``peak_mib`` is the largest resident set, and where a process had others beside it, the sum of
    the largest of each.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Measure:
    """Run ``command`` to its end; raises ``RuntimeError`` with its last words when it fails.

    Everything that is dirty is flushed first, so that no process pays for the one before. The
    kernel counts a child's resident set from the fork on: keep the calling process small.
    """
    os.sync()
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env)
        ended, beside = threading.Event(), _Beside(process.pid)
        watcher = threading.Thread(target=beside.watch, args=(ended,))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()[-2000:]
            raise RuntimeError(f"{' '.join(command)} exited {process.returncode}:\n{words}")
    return Measure(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=(usage.ru_maxrss + sum(beside.peaks.values())) / 1024,
    )


class _Beside:
    """The children of a process, and the largest resident set of each in KiB."""

    def __init__(self, parent: int) -> None:
        self._children = Path(f"/proc/{parent}/task/{parent}/children")
        self.peaks: dict[str, int] = {}

    def watch(self, ended: threading.Event) -> None:
        """Look ten times a second: the kernel itself keeps the largest."""
        while not ended.wait(0.1):
            with suppress(OSError):  # it ended while we looked
                for child in self._children.read_text().split():
                    for line in Path(f"/proc/{child}/status").read_text().splitlines():
                        if line.startswith("VmHWM"):
                            self.peaks[child] = int(line.split()[1])


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median, and the smallest and largest in brackets."""
    middle = f"{median(values):.2f}{unit}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} .. {max(values):.2f})"
