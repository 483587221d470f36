"""An output appears whole or not at all, also when processes are killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moeify.checkpoint.staging import check_free_space, check_output, output_errors, scratch_folder, staged
from moeify.errors import OutputError

HOLD = """
import sys, time
from pathlib import Path
from moeify.checkpoint.staging import staged
with staged(Path(sys.argv[1])) as stage:
    (stage / "half").write_text("written")
    print("ready", flush=True)
    time.sleep(60)
"""


def hold(output: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_success_leaves_the_output_alone_in_its_folder(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "x"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), staged(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_and_failure_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError, match="no"), staged(out, force=True) as stage:
        (stage / "new").write_text("new")
        raise ValueError("no")
    assert [path.name for path in out.iterdir()] == ["old"]
    with staged(out, force=True) as stage:
        (stage / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_made_on_the_way_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="no"), staged(tmp_path / "there" / "a" / "b" / "out"):
        raise ValueError("no")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with staged(tmp_path / "there" / "a" / "b" / "out") as stage:
        (stage / "file").write_text("x")
    assert (tmp_path / "there" / "a" / "b" / "out" / "file").exists()


def test_an_output_that_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"), staged(tmp_path / "out"):
        raise AssertionError("no work begins")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_after_publishing_leaves_the_next_runs_folder_alone(tmp_path: Path) -> None:
    """The staging folder has one name for all runs, and by then it may be somebody else's."""
    stage = tmp_path / ".out.moeify-partial"
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True):
        stage.rename(tmp_path / "moved")
        stage.mkdir()
        (stage / "theirs").write_text("x")
        raise RuntimeError
    assert (stage / "theirs").exists()


def test_an_output_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="appeared"), staged(tmp_path / "out") as stage:
        (stage / "mine").write_text("x")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("y")
    assert (tmp_path / "out" / "theirs").read_text() == "y"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_and_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = hold(out)
    with pytest.raises(OutputError, match="another moeify run"), staged(out):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".out.moeify-partial"]
    with staged(out) as stage:
        assert list(stage.iterdir()) == []
        (stage / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    replaced = tmp_path / ".out.moeify-replaced"
    replaced.mkdir()
    (replaced / "old").write_text("old")
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True):
        raise RuntimeError
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_check_output(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    check_output(tmp_path / "new" / "deep", source)
    with pytest.raises(OutputError, match="inside one another"):
        check_output(source / "inside", source)
    with pytest.raises(OutputError, match="inside one another"):
        check_output(source, source, force=True)
    with pytest.raises(OutputError, match="inside one another"):
        check_output(tmp_path, source, force=True)
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(OutputError, match="exists already"):
        check_output(taken, source)
    check_output(taken, source, force=True)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputError, match="not a folder"):
        check_output(file, source, force=True)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(file / "below", source)


def test_free_space(tmp_path: Path) -> None:
    check_free_space(tmp_path / "out", 1)
    with pytest.raises(OutputError, match="GB free"):
        check_free_space(tmp_path / "out", 1 << 60)


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "no space left"), (errno.EIO, "Input/output error")])
def test_system_errors_become_sentences(tmp_path: Path, code: int, reason: str) -> None:
    with pytest.raises(OutputError, match=reason), output_errors(tmp_path / "out"):
        raise OSError(code, os.strerror(code))


def test_the_lock_is_gone_with_its_process(tmp_path: Path) -> None:
    process = hold(tmp_path / "out")
    process.terminate()
    process.wait()
    deadline = time.monotonic() + 30
    while True:
        try:
            with staged(tmp_path / "out") as stage:
                (stage / "file").write_text("x")
            break
        except OutputError:
            assert time.monotonic() < deadline
    assert (tmp_path / "out" / "file").exists()


def test_scratch_of_a_killed_process_is_cleared_by_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    held = HOLD.replace("staged", "scratch_folder")
    first, second = (
        subprocess.Popen([sys.executable, "-c", held, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    for process in (first, second):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with scratch_folder(tmp_path) as mine:
        assert len(list(tmp_path.iterdir())) == 3 and mine.is_dir()
    first.kill()
    first.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with scratch_folder(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2  # the second's and this one
    second.kill()
    second.wait()
    with scratch_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
