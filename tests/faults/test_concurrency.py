"""Two commands at once, as real processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import moeify
from tests.faults.disk import check_refusal
from tests.faults.killing import tree
from tests.faults.processes import Ended, Place, Running
from tests.faults.scenarios import Scenario, Sources, scenarios


@pytest.fixture(scope="module")
def scenario(sources: Sources) -> Scenario:
    return next(s for s in scenarios(sources) if s.name == "upcycle gpt2")


def together(scenario: Scenario, folder: Path, *outputs: str, force: bool = False) -> list[Ended]:
    """One process for every output, started at the same time."""
    more = ("--force",) if force else ()
    running = [Running(Place(folder=folder), scenario.line(name, *more)) for name in outputs]
    return [process.wait() for process in running]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_on_the_same_output_one_wins_and_the_other_says_so(scenario: Scenario, tmp_path: Path) -> None:
    (alone,) = together(scenario, tmp_path, "alone")
    assert alone.code == 0
    expected = tree(tmp_path / "alone")
    for number in range(3):
        place = tmp_path / str(number)
        place.mkdir()
        ended = together(scenario, place, "out", "out")
        assert sorted(process.code for process in ended) == [0, 1], ended
        loser = next(process for process in ended if process.code)
        said = check_refusal(loser, loser.stderr)
        assert "another moeify run is writing" in said or "exists already" in said
        assert names(place) == ["out"]
        assert tree(place / "out") == expected
        shutil.rmtree(place)


def test_with_force_the_output_is_whole_whoever_comes_last(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ended = together(scenario, tmp_path, "out", "out", "out", force=True)
    assert 0 in [process.code for process in ended]
    for process in ended:
        if process.code:
            assert "another moeify run" in check_refusal(process, process.stderr)
    assert names(tmp_path) == ["out"]
    assert not moeify.inspect(tmp_path / "out").problems


def test_on_the_same_source_both_succeed(scenario: Scenario, tmp_path: Path) -> None:
    before = tree(scenario.source)
    ended = together(scenario, tmp_path, "one", "two")
    assert [process.code for process in ended] == [0, 0]
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert tree(scenario.source) == before
    assert names(tmp_path) == ["one", "two"]
