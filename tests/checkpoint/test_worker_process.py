"""A process beside ours: what it does, how it ends, and what it never imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeify.checkpoint.worker_process import WorkerProcess
from moeify.errors import CheckpointError


class Counter:
    """A state with a memory."""

    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, number: int) -> int:
        self.value += number
        return self.value


def say(counter: Counter, text: str) -> int:
    print(text, flush=True)
    return counter.value


def fail(counter: Counter) -> None:
    raise CheckpointError("a.safetensors is damaged", "make it again", path=Path("a.safetensors"))


def read(counter: Counter, handle: int) -> bytes:
    return os.pread(handle, 100, 0)


def pid(counter: Counter) -> int:
    return os.getpid()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess[Counter]]:
    started = WorkerProcess(Counter, [], 5)
    yield started
    started.close()


def test_the_state_is_kept_between_calls(worker: WorkerProcess[Counter]) -> None:
    assert [worker.call(Counter.add, number) for number in (1, 2, 3)] == [6, 8, 11]
    assert worker.call(pid) != os.getpid()


def test_errors_come_back_whole_and_the_process_goes_on(worker: WorkerProcess[Counter]) -> None:
    with pytest.raises(CheckpointError, match="damaged") as caught:
        worker.call(fail)
    assert caught.value.hint == "make it again"
    assert caught.value.path == Path("a.safetensors")
    assert worker.call(Counter.add, 1) == 6


def test_what_it_prints_does_not_mix_with_results(worker: WorkerProcess[Counter]) -> None:
    assert worker.call(say, "to be seen on standard error") == 5


def test_open_files_are_inherited(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    handle = os.open(tmp_path / "file", os.O_RDONLY)
    worker = WorkerProcess(Counter, [handle], 0)
    try:
        (tmp_path / "file").unlink()
        assert worker.call(read, handle) == b"content"
    finally:
        worker.close()
        os.close(handle)


def test_a_process_that_is_killed_is_noticed(worker: WorkerProcess[Counter]) -> None:
    os.kill(worker.call(pid), signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="ended with status -9"):
        worker.call(Counter.add, 1)


def test_nothing_in_the_working_folder_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pickle", "numpy", "moeify", "subprocess", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    worker = WorkerProcess(Counter, [], 1)
    assert worker.call(Counter.add, 1) == 2
    worker.close()
    assert not (tmp_path / "ran").exists()


def test_it_ends_with_the_process_that_started_it() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tests.checkpoint.test_worker_process import *\n"
            "worker = WorkerProcess(Counter, [], 1); print(worker.call(pid), flush=True);"
            "time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(number: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False
