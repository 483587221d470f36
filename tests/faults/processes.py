"""moeify processes that are started, watched and killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 300


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: its code as a shell shows it, and what it wrote."""

    code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(kw_only=True)
class Place:
    """Where commands run, with which environment."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MOEIFY_"))}
        fixed = {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return kept | fixed | self.environment


class Running:
    """A process of its own, from the interpreter on."""

    def __init__(
        self, place: Place, arguments: list[str], moment: dict[str, Any] | None = None, wrapper: tuple[str, ...] = ()
    ) -> None:
        self.started = time.perf_counter()
        variables = place.variables
        program = "moeify"
        if moment:
            variables["MOMENT"] = json.dumps(moment)
            program = "tests.faults.child"
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", program, *arguments],
            cwd=place.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive:
            self._process.send_signal(number)

    def wait(self) -> Ended:
        """Wait for the end."""
        stdout, stderr = self._process.communicate(timeout=TIMEOUT)
        seconds = time.perf_counter() - self.started
        return Ended(code=shell_code(self._process.returncode), stdout=stdout, stderr=stderr, seconds=seconds)


class Nursery:
    """A parent that has imported torch and transformers, whose children need not."""

    def __init__(self, preload: Path | None = None) -> None:
        variables = Place(folder=REPOSITORY).variables
        if preload is not None:
            variables["LD_PRELOAD"] = str(preload)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.child", "--nursery"],
            cwd=REPOSITORY,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        """The next thing the parent says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, place: Place, arguments: list[str], moment: dict[str, Any] | None = None) -> Forked:
        """Fork a child that runs a command; one at a time."""
        out = place.folder.parent / f"{place.folder.name}.stdout"
        err = place.folder.parent / f"{place.folder.name}.stderr"
        order = {
            "cwd": str(place.folder),
            "environment": place.environment,
            "arguments": arguments,
            "moment": moment or {},
            "stdout": str(out),
            "stderr": str(err),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Forked(self, int(self.line()), out, err)

    def close(self) -> None:
        """Let the parent end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=TIMEOUT)


class Forked:
    """A child of the nursery: a process of its own, with its own memory, signals and files."""

    def __init__(self, nursery: Nursery, pid: int, out: Path, err: Path) -> None:
        self.pid, self._nursery, self._out, self._err = pid, nursery, out, err
        self.started = time.perf_counter()

    @property
    def alive(self) -> bool:
        """Whether it still runs, or has ended and was not waited for."""
        return Path(f"/proc/{self.pid}").exists()

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self) -> Ended:
        """Wait for the end."""
        code = shell_code(int(self._nursery.line()))
        seconds = time.perf_counter() - self.started
        texts = [path.read_text(errors="replace") for path in (self._out, self._err)]
        for path in (self._out, self._err):
            path.unlink()
        return Ended(code=code, stdout=texts[0], stderr=texts[1], seconds=seconds)


def stopped(pid: int) -> None:
    """Wait until a process has stopped itself."""
    deadline = time.monotonic() + TIMEOUT
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.005)


def shell_code(returncode: int) -> int:
    """128 + the signal's number for a process that a signal ended."""
    return returncode if returncode >= 0 else 128 - returncode


@contextmanager
def nursery(preload: Path | None = None) -> Iterator[Nursery]:
    """A nursery for the length of a block; ``preload`` is a library that stands before libc."""
    parent = Nursery(preload)
    try:
        yield parent
    finally:
        parent.close()
