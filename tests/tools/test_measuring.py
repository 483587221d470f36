"""The scripts behind docs/evidence.md run in a small form, and go on where they were left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ARMS = ("dense", "dense, twice as wide", "4 slices of 4, one shared", "4 experts from scratch")
SMALL = ("--tokens", "8192", "--seeds", "2", "--measured", "1024", *(word for arm in ARMS for word in ("--arm", arm)))


def run(work: Path, *options: str) -> str:
    command = [sys.executable, str(REPOSITORY / "scripts" / "measure_decoders.py"), str(work), *SMALL]
    done = subprocess.run([*command, "--results", str(work / "found.json"), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_decoders_are_compared_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    assert len(run(tmp_path).splitlines()) == len(ARMS) * (2 + 2)
    found = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert run(tmp_path) == "" and json.loads((tmp_path / "found.json").read_text())["runs"] == found
    rows = {line.split(" | ")[0].strip("| "): line for line in run(tmp_path, "--table").splitlines()[2:]}
    assert set(rows) == set(ARMS) and all(" +- " in line for line in rows.values())
    first = {one["arm"]: one["points"][0]["loss"] for one in found if one["part"] == "test" and one["seed"] == 0}
    last = {one["arm"]: one["points"][-1]["loss"] for one in found if one["part"] == "test" and one["seed"] == 0}
    assert first["dense, twice as wide"] == pytest.approx(first["dense"], abs=5e-3)  # the same function, but for noise
    assert first["4 slices of 4, one shared"] == pytest.approx(first["dense"], abs=5e-3)
    assert first["4 experts from scratch"] > 7
    assert all(last[arm] < first[arm] for arm in ARMS)
    parameters = {one["arm"]: (one["active"], one["parameters"]) for one in found}
    assert parameters["dense"][0] == parameters["dense"][1] < parameters["dense, twice as wide"][0]
    assert parameters["4 slices of 4, one shared"][0] < 1.02 * parameters["dense"][0]
