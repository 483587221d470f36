"""The short form of ``make faults``: commands killed at a dozen moments, and those that matter."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

import moeify
from tests.faults.killing import Striker, tree
from tests.faults.processes import Ended, Nursery, Place, Running
from tests.faults.scenarios import Scenario, Sources, scenarios


@pytest.fixture(scope="module")
def striker(parent: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Striker:
    return Striker(tmp_path_factory.mktemp("strikes"), parent, fresh=False)


def find(sources: Sources, name: str) -> Scenario:
    return next(scenario for scenario in scenarios(sources) if scenario.name == name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("upcycle qwen3", 3),
        ("upcycle gpt2 --force", 3),
        ("attach gpt2", 3),
        ("extract qwen3", 3),
        ("prune qwen3", 1),
        ("warmup gpt2", 2),
        ("push qwen3", 2),
    ],
)
def test_a_kill_at_any_moment_loses_nothing(sources: Sources, striker: Striker, name: str, moments: int) -> None:
    for number in range(moments):
        striker.strike(find(sources, name), random.Random(f"{name}/{number}"))


def run(scenario: Scenario, folder: Path, *more: str, **moment: object) -> Ended:
    """A process from the interpreter on, with output ``out`` in ``folder``."""
    place = Place(folder=folder)
    return Running(place, scenario.line("out", *more), moment or None).wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_kill_between_the_two_renames_of_force(sources: Sources, tmp_path: Path) -> None:
    scenario = find(sources, "extract qwen3")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("what was there")
    second = {"below": str(tmp_path), "event": "os.rename", "operation": 2}
    ended = run(scenario, tmp_path, "--force", signal=signal.SIGKILL, **second)
    assert ended.code == 137
    assert names(tmp_path) == [".out.moeify-partial", ".out.moeify-replaced"]
    refused = run(scenario, tmp_path)
    assert refused.code == 1
    assert "exists already" in refused.stderr
    assert tree(tmp_path / "out").keys() == {"old"}, "the next run puts back what was there"
    assert names(tmp_path) == ["out"]
    ended = run(scenario, tmp_path, "--force", signal=signal.SIGKILL, **second)
    assert ended.code == 137
    assert run(scenario, tmp_path, "--force").code == 0
    assert names(tmp_path) == ["out"]
    assert not moeify.inspect(tmp_path / "out").problems


@pytest.mark.slow
def test_a_kill_while_layers_are_evaluated_one_by_one(sources: Sources, parent: Nursery, tmp_path: Path) -> None:
    """What layers give lies in the staging folder; it once lay beside the source, and stayed."""
    scenario, place = find(sources, "prune qwen3"), Place(folder=tmp_path / "place")
    place.folder.mkdir()
    line, beside = scenario.line("out", "--eval", "--low-memory"), names(scenario.source.parent)
    third = {"below": ".moeify-states-", "event": "os.mkdir", "operation": 3, "signal": signal.SIGKILL}
    assert parent.start(place, line, third).wait().code == 137
    (partial,) = place.folder.glob(".out.moeify-partial")
    assert list(partial.glob(".moeify-states-*/*.safetensors"))
    assert names(scenario.source.parent) == beside
    ended = parent.start(place, line).wait()
    assert ended.code == 0, ended.stderr
    assert names(place.folder) == ["out"] and not list((place.folder / "out").glob(".moeify-states*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_while_a_model_is_loaded(sources: Sources, tmp_path: Path, number: signal.Signals) -> None:
    """The temporary folder goes; what SIGKILL leaves are links and settings, never weights."""
    place = Place(folder=tmp_path, environment={"TMPDIR": str(tmp_path / "temporary")})
    (tmp_path / "temporary").mkdir()
    line = ["verify", str(sources.dense["qwen3"]), str(sources.mixtures["qwen3"]), "--seq-len", "4"]
    moment = {"below": "temporary/moeify-", "event": "open", "operation": 4, "signal": number}
    ended = Running(place, line, moment).wait()
    assert ended.code == 128 + number, ended.stderr
    left = [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
    assert not left if number == signal.SIGTERM else left
    assert sum(path.lstat().st_size for path in left) < 10_000


@pytest.mark.parametrize("event", ["os.rename", "shutil.rmtree"])
def test_a_second_signal_does_not_interrupt_the_clean_up(sources: Sources, tmp_path: Path, event: str) -> None:
    """The first one comes while weights are written, the second in what it causes."""
    scenario = find(sources, "extract qwen3")
    here = str(tmp_path)
    first = {"below": "model-", "event": "open", "operation": 2, "signal": signal.SIGINT}
    second = {"below": here, "event": event, "operation": 1, "signal": signal.SIGTERM}
    moments = [second] if event == "os.rename" else [first, second]
    ended = run(scenario, tmp_path, all=moments)
    assert ended.code == (143 if event == "os.rename" else 130)
    assert names(tmp_path) == (["out"] if event == "os.rename" else [])
    assert "Traceback" not in ended.stderr
