"""Noise is made by processes beside ours: nothing of them is left, however a run ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killing import tree
from tests.faults.processes import TIMEOUT, Ended, Place, Running
from tests.faults.scenarios import Sources

TOKEN = "MOEIFY_TEST_TOKEN"


def workers(token: str) -> Iterator[int]:
    """The processes with our token in their environment that serve another one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes()
                serves = b"worker_process" in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if ours and serves:
                yield int(entry.name)


def upcycling(sources: Sources, folder: Path, operation: int = 0, sent: int = 0) -> Running:
    """An upcycling by processes; at an operation on files it stops, or sends itself a signal."""
    stop = sent or signal.SIGSTOP
    moment = {"processes": True, "below": str(folder), "operation": operation, "signal": stop}
    place = Place(folder=folder, environment={TOKEN: str(folder)})
    noisy = ("--experts", "8", "--noise", "0.01", "--max-shard-size", "2MB")
    return Running(place, ["upcycle", str(sources.dense["qwen3"]), "out", *noisy], moment)


def all_gone(folder: Path) -> bool:
    """Whether the last worker ends soon."""
    deadline = time.monotonic() + 60
    while any(workers(str(folder))):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def paused(running: Running, folder: Path) -> int:
    """Wait for the stop; returns the process id of a worker."""
    deadline = time.monotonic() + TIMEOUT
    while "\nState:\tT" not in Path(f"/proc/{running.pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return next(workers(str(folder)))


def reference(sources: Sources, folder: Path) -> Ended:
    folder.mkdir()
    ended = upcycling(sources, folder).wait()
    assert ended.code == 0, ended.stderr
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_them_too(sources: Sources, tmp_path: Path, number: int) -> None:
    reference(sources, tmp_path / "whole")
    folder = tmp_path / "struck"
    folder.mkdir()
    ended = upcycling(sources, folder, operation=12, sent=number).wait()
    assert ended.code == 128 + number
    assert all_gone(folder)
    left = [".out.moeify-partial"] if number == signal.SIGKILL else []
    assert [path.name for path in folder.iterdir()] == left
    assert upcycling(sources, folder).wait().code == 0
    assert tree(folder / "out") == tree(tmp_path / "whole" / "out")
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_one_that_is_killed_ends_the_run_in_a_sentence(sources: Sources, tmp_path: Path) -> None:
    running = upcycling(sources, tmp_path, operation=12)
    os.kill(paused(running, tmp_path), signal.SIGKILL)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    assert ended.code == 1
    assert "a worker process ended with status -9; nothing was kept" in ended.stderr
    assert "for want of memory" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
    assert all_gone(tmp_path)
