"""Disks that are full, broken or read-only, and sources that change while they are read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disk import Disk, check_refusal
from tests.faults.killing import tree
from tests.faults.processes import Ended, Nursery, Place, Running, stopped
from tests.faults.scenarios import Scenario, Sources, scenarios

LIGHT = ("upcycle", "attach", "extract")


@pytest.fixture
def disk(parent: Nursery, tmp_path: Path) -> Disk:
    return Disk(nursery=parent, folder=tmp_path)


def find(sources: Sources, command: str) -> Scenario:
    return next(s for s in scenarios(sources) if s.name == f"{command} qwen3")


def written(disk: Disk, scenario: Scenario) -> int:
    """Bytes that a run writes; a disk that has room for as many is not full."""
    assert disk.run(scenario).code == 0
    files = [path.stat() for path in disk.place.rglob("*") if path.is_file()]
    return sum(file.st_size for file in files if file.st_nlink == 1)  # others are linked


@pytest.mark.slow
@pytest.mark.parametrize("command", [*LIGHT, "prune", "warmup"])
def test_a_disk_that_fills_up_at_any_byte(disk: Disk, sources: Sources, command: str) -> None:
    scenario, rng = find(sources, command), random.Random(command)
    room = written(disk, scenario) if command in LIGHT else 30_000
    first = [0] if command in LIGHT else []
    for place in (*first, *(rng.randrange(room) for _ in range(2 if command in LIGHT else 1))):
        said = disk.refuse(scenario, room=place)
        assert "no space left" in said.lower()


@pytest.mark.parametrize("command", LIGHT)
@pytest.mark.parametrize("fault", ["write", "sync"])
def test_errors_of_the_output_disk(disk: Disk, sources: Sources, command: str, fault: str) -> None:
    said = disk.refuse(find(sources, command), **{fault: 2})
    assert "Input/output error" in said
    assert "nothing was kept" in said


def test_errors_where_a_run_keeps_its_state(disk: Disk, sources: Sources) -> None:
    said = disk.refuse(find(sources, "warmup"), write=1)
    assert "out.warmup failed: Input/output error" in said


@pytest.mark.parametrize("command", LIGHT)
def test_errors_of_the_source_disk(disk: Disk, sources: Sources, command: str) -> None:
    scenario = find(sources, command)
    for number in (1, 3, 7):
        said = disk.refuse(scenario, below=scenario.source, read=number)
        assert "Input/output error" in said
        assert "nothing was kept" not in said, "the source failed, not the output"


@pytest.mark.parametrize("command", ["upcycle", "attach"])
@pytest.mark.parametrize("call", ["mkdir:2:13", "open:1:30", "create:2:13", "rename:1:5"])
def test_calls_that_are_refused(disk: Disk, sources: Sources, command: str, call: str) -> None:
    said = disk.refuse(find(sources, command), call=call)
    reason = {"13": "Permission denied", "30": "Read-only file system", "5": "Input/output error"}
    assert reason[call.rsplit(":", 1)[1]] in said


@pytest.mark.slow
@pytest.mark.parametrize("command", LIGHT)
def test_short_reads_and_writes_change_nothing(disk: Disk, sources: Sources, command: str) -> None:
    scenario = find(sources, command)
    assert disk.run(scenario).code == 0
    expected = tree(disk.place / "out")
    both = Path(os.path.commonpath([disk.folder, scenario.source]))
    assert disk.run(scenario, below=both, short=1).code == 0
    assert tree(disk.place / "out") == expected


def test_links_that_are_refused_become_copies(disk: Disk, sources: Sources) -> None:
    scenario = find(sources, "attach")
    assert disk.run(scenario).code == 0
    expected = tree(disk.place / "out")
    assert disk.run(scenario, call="link:1:1").code == 0
    assert tree(disk.place / "out") == expected
    name = next(path.name for path in scenario.source.glob("model-00001*"))
    assert not (disk.place / "out" / name).samefile(scenario.source / name)


Change = Callable[[Path], object]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def touch(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")


@pytest.mark.parametrize(
    ("name", "moment", "change", "reason"),
    [
        ("model-00001-of-00002.safetensors", ("model-", 1), cut, "shrank"),
        ("model-00001-of-00002.safetensors", ("model-", 1), touch, "was changed while it was read"),
        ("model-00001-of-00002.safetensors", ("source", 1), Path.unlink, "is missing from"),
        ("model-00001-of-00002.safetensors", ("source", 2), Path.unlink, "is missing from"),
        ("tokenizer.json", ("source", 1), Path.unlink, "No such file"),
        ("tokenizer.json", ("tokenizer.json", 1), cut, "changed its size"),
        ("config.json", ("source", 1), Path.unlink, "has no config.json"),
    ],
    ids=["shrinks", "changes", "vanishes early", "vanishes late", "carried", "cut", "config"],
)
def test_a_source_that_changes_while_it_is_read(
    parent: Nursery, sources: Sources, tmp_path: Path, name: str, moment: tuple[str, int], change: Change, reason: str
) -> None:
    """The command stops itself at an opening of a file, and goes on after the change."""
    dense = shutil.copytree(sources.dense["qwen3"], tmp_path / "dense")
    place = Place(folder=tmp_path / "place")
    place.folder.mkdir()
    below = str(dense / name) if moment[0] == "source" else f".out.moeify-partial/{moment[0]}"
    stop = {"below": below, "event": "open", "operation": moment[1], "signal": signal.SIGSTOP}
    line = ["upcycle", str(dense), "out", "--experts", "2", "--noise", "0"]
    running = parent.start(place, line, stop)
    stopped(running.pid)
    change(dense / name)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    assert reason in check_refusal(ended, ended.stderr)
    assert list(place.folder.iterdir()) == []


# Root passes over permissions, so it gives that right away; everybody else has to obey them.
_OBEYS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def obedient(place: Place, scenario: Scenario, **moment: object) -> Running:
    wrapper = _OBEYS if os.geteuid() == 0 else ()
    return Running(place, scenario.line("out"), moment or None, wrapper)


def test_a_parent_without_write_permission(sources: Sources, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    ended = obedient(Place(folder=tmp_path), find(sources, "extract")).wait()
    tmp_path.chmod(0o755)
    assert "cannot be written to" in check_refusal(ended, ended.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_loses_its_permission(sources: Sources, tmp_path: Path) -> None:
    scenario = find(sources, "extract")
    stop = {"below": ".out.moeify-partial/model", "event": "open", "operation": 1}
    running = obedient(Place(folder=tmp_path), scenario, signal=signal.SIGSTOP, **stop)
    stopped(running.pid)
    tmp_path.chmod(0o555)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    tmp_path.chmod(0o755)
    assert "Permission denied" in check_refusal(ended, ended.stderr)
    (left,) = tmp_path.iterdir()  # nobody may remove it there
    assert left.name == ".out.moeify-partial"
    assert list(left.iterdir()) == []
    assert obedient(Place(folder=tmp_path), scenario).wait().code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_source_without_read_permission(sources: Sources, tmp_path: Path) -> None:
    moe = shutil.copytree(sources.mixtures["qwen3"], tmp_path / "moe")
    next(moe.glob("model-00001*")).chmod(0)
    scenario = Scenario(family="qwen3", command="extract", source=moe)
    ended = obedient(Place(folder=tmp_path), scenario).wait()
    assert "Permission denied" in check_refusal(ended, ended.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; only root may make one, and the library above needs nobody's leave."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)])
    if made.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_that_is_really_full(parent: Nursery, sources: Sources, small_disk: Path) -> None:
    def run(*options: str, moment: dict[str, object] | None = None, fill: int = 0) -> Ended:
        line = ["upcycle", str(sources.dense["qwen3"]), "out", "--experts", *options]
        running = parent.start(Place(folder=small_disk), line, moment)
        if fill:
            stopped(running.pid)
            free = shutil.disk_usage(small_disk).free
            (small_disk / "other").write_bytes(bytes(free - fill))
            running.signal(signal.SIGCONT)
        return running.wait()

    (small_disk.parent / "small.stdout").unlink(missing_ok=True)
    ended = run("64")
    assert "GB free" in check_refusal(ended, ended.stderr)
    stop = {"below": ".out.moeify-partial", "event": "os.mkdir", "operation": 1, "signal": signal.SIGSTOP}
    ended = run("2", moment=stop, fill=300_000)
    assert "no space left" in check_refusal(ended, ended.stderr)
    assert [path.name for path in small_disk.iterdir()] == ["other"]
    (small_disk / "other").unlink()
    assert run("2").code == 0


def test_a_read_only_file_system(parent: Nursery, sources: Sources, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = parent.start(Place(folder=small_disk), find(sources, "extract").line("out")).wait()
    assert "cannot be written to" in check_refusal(ended, ended.stderr)
