"""The scripts behind docs/measured/evidence.md run in a small form, and go on where they were left."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL = ("--tokens", "20480", "--measured", "1024")


class Measuring:
    """The scripts, run in this process, and the file that they keep their results in."""

    def __init__(self, work: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.path, self.work, self.patch, self.capture = work / "found.json", work, patch, capture

    def of(self, name: str, *options: str, arms: tuple[str, ...]) -> None:
        """Choose a script and some of its arms."""
        chosen = [word for arm in arms for word in ("--arm", arm)]
        script = str(SCRIPTS / f"measure_{name}.py")
        self.command = [script, str(self.work), "--results", str(self.path), *options, *chosen]

    def lines(self, *options: str) -> list[str]:
        """What a call of the script prints."""
        self.patch.setattr(sys, "argv", [*self.command, *options])
        self.capture.readouterr()
        runpy.run_path(self.command[0], run_name="__main__")
        return self.capture.readouterr().out.splitlines()

    def runs(self) -> list[dict[str, Any]]:
        """What is reported after a first call, and that a second one measures nothing again."""
        self.lines()
        found = self.path.read_text()
        assert self.lines() == [] and self.path.read_text() == found
        return [one for one in json.loads(found)["runs"] if one["part"] == "test"]

    def table(self) -> dict[str, list[str]]:
        """The cells by their first column."""
        head, rule, *rows = [line[2:-2].split(" | ") for line in self.lines("--table")]
        assert all(len(row) == len(head) == len(rule) for row in rows)
        return {name: cells for name, *cells in rows}


@pytest.fixture
def measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Measuring]:
    threads = torch.get_num_threads()  # which the scripts set
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield Measuring(tmp_path, monkeypatch, capsys)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_decoders(measuring: Measuring) -> None:
    again = "dense, on 70 % of the text"
    arms = ("dense", "dense, twice as wide", again, "4 slices of 4, one shared", "4 experts from scratch")
    measuring.of("decoders", *SMALL, "--seeds", "2", arms=arms)
    found = measuring.runs()
    full = [one for one in found if one["tokens"] == 20480]
    rows = measuring.table()
    assert set(rows) == set(arms) and all(" +- " in " ".join(cells) for cells in rows.values())
    first, last = ({one["arm"]: one["points"][n]["loss"] for one in full if not one["seed"]} for n in (0, -1))
    assert first["dense, twice as wide"] == pytest.approx(first["dense"], abs=1e-5)  # the same function
    assert first[again] == first["dense"] and last[again] != last["dense"]  # of other text
    assert first["4 slices of 4, one shared"] == pytest.approx(first["dense"], abs=5e-3)
    assert first["4 experts from scratch"] > 7
    assert all(last[arm] < first[arm] for arm in arms)
    spent: dict[str, set[int]] = {arm: set() for arm in arms}
    for one in found:
        spent[one["arm"]].add(one["tokens"] * one["flops_per_token"])
    quarter, budget = sorted(spent["dense"])
    assert budget == 4 * quarter
    assert all(any(one == pytest.approx(budget, rel=0.03) for one in spent[arm]) for arm in arms)
    assert {arm for arm in arms if len(spent[arm]) == 3} == {"dense, twice as wide", "4 experts from scratch"}
    parameters = {one["arm"]: (one["active"], one["parameters"]) for one in found}
    assert parameters["dense"][0] == parameters["dense"][1] < parameters["dense, twice as wide"][0]
    assert parameters["4 slices of 4, one shared"][0] < 1.02 * parameters["dense"][0]


@pytest.mark.slow
def test_head_start(measuring: Measuring) -> None:
    arms = ("drawn", "k-means", "domains, warmed up", "k-means, warmed up, bias")
    measuring.of("head_start", *SMALL, "--seeds", "1", "--steps", "2", arms=arms)
    found = {one["arm"]: one for one in measuring.runs()}
    assert set(measuring.table()) == set(arms) == set(found)
    before = {arm: one["warm_up_tokens"] for arm, one in found.items()}
    assert before["drawn"] == 0 < before["k-means"] == before["domains, warmed up"] - 2 * 2048
    known = {arm: one["points"][0]["nmi"] for arm, one in found.items()}
    assert known["domains, warmed up"] > known["k-means"] > known["drawn"]  # of the domains, at step 0
    assert all(one["points"][-1]["loss"] < one["points"][0]["loss"] for one in found.values())


@pytest.mark.slow
def test_encoders(measuring: Measuring) -> None:
    options = ("--pairs", "64", "--seeds", "1", "--searches", "1")
    measuring.of("encoders", *options, arms=("4 copies by sequence",))
    (found,) = measuring.runs()
    before, after = found["points"]
    for systems in ("tuned systems", "unseen systems"):
        assert before[systems]["nearest"] < after[systems]["nearest"] <= after[systems]["mrr"] < 1
    assert set(measuring.table()) == {"4 copies by sequence"}


@pytest.mark.slow
def test_recovery(measuring: Measuring) -> None:
    measuring.of("recovery", *SMALL, "--seeds", "1", "--steps", "2", arms=("4 slices of 4",))
    (found,) = measuring.runs()
    assert set(measuring.table()) == {"4 slices of 4"}
    for losses in found["pruned"].values():
        for by in ("reap", "random"):
            assert found["unpruned"] < losses[by]["pruned"]
            assert len({round(loss, 6) for loss in losses[by].values()}) == 3  # two steps change routers, and little
            assert max(losses[by].values()) < losses[by]["pruned"] + 0.02
