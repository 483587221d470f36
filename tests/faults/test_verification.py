"""Damage between writing and publishing, and damage that comes later."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import moeify
from moeify.errors import CheckpointError
from moeify.provenance import new_checkpoint
from tests.faults.disk import check_refusal
from tests.faults.killing import tree
from tests.faults.processes import Ended, Nursery, Place, Running, stopped
from tests.faults.scenarios import Scenario, Sources, place_for, scenarios

COMMANDS = ("upcycle", "attach", "extract", "prune", "warmup")


def find(sources: Sources, command: str) -> Scenario:
    return next(s for s in scenarios(sources) if s.name == f"{command} qwen3")


def flip(path: Path, place: int, bit: int = 3) -> None:
    """Turn one bit over, on the disk and in the page cache."""
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def damaged_while_writing(
    parent: Nursery,
    scenario: Scenario,
    folder: Path,
    damage: Callable[[Path], object],
    *more: str,
    before: str = "config.json",
) -> Ended:
    """Let ``damage`` befall the staging folder before a file is opened that follows the weights."""
    folder.mkdir()
    stop = {"below": f".out.moeify-partial/{before}", "event": "open", "operation": 1, "signal": signal.SIGSTOP}
    running = parent.start(Place(folder=folder), scenario.line("out", *more), stop)
    stopped(running.pid)
    damage(folder / ".out.moeify-partial")
    running.signal(signal.SIGCONT)
    return running.wait()


def new_weights(stage: Path) -> Path:
    """The file that was written rather than linked."""
    return [path for path in sorted(stage.glob("*.safetensors")) if path.stat().st_nlink == 1][-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bit_that_flips_after_the_sums_is_found_by_verify(
    parent: Nursery, sources: Sources, tmp_path: Path, command: str
) -> None:
    def damage(stage: Path) -> None:
        path = new_weights(stage)
        flip(path, path.stat().st_size - 7)
        flip(stage / "tokenizer.json", 5)
        damaged.extend([path.name, "tokenizer.json"])

    damaged: list[str] = []
    ended = damaged_while_writing(
        parent, find(sources, command), tmp_path / "a", damage, "--checksum", before="moeify.json"
    )
    assert ended.code == 0, ended.stderr
    report = moeify.inspect(tmp_path / "a" / "out", verify=True)
    assert sorted(problem.message.split()[0] for problem in report.problems) == sorted(damaged)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("upcycle", "header"),
        ("upcycle", "size"),
        ("upcycle", "gone"),
        ("extract", "header"),
        ("attach", "header"),
        ("prune", "header"),
        ("warmup", "header"),
    ],
)
def test_structure_is_always_checked(
    parent: Nursery, sources: Sources, tmp_path: Path, command: str, what: str
) -> None:
    def damage(stage: Path) -> None:
        path = new_weights(stage)
        if what == "header":
            raw = bytearray(path.read_bytes())
            place = raw.index(b"weight")  # of a name in the header
            raw[place : place + 6] = b"height"
            path.write_bytes(raw)
        elif what == "size":
            path.write_bytes(path.read_bytes()[:-2])
        else:
            path.unlink()

    ended = damaged_while_writing(parent, find(sources, command), tmp_path / "a", damage)
    check_refusal(ended, ended.stderr)
    assert {path.name for path in (tmp_path / "a").iterdir()} <= set(find(sources, command).resumes)


@pytest.fixture(scope="module")
def summed(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with recorded checksums."""
    folder = tmp_path_factory.mktemp("summed") / "moe"
    moeify.upcycle(sources.dense["qwen3"], folder, num_experts=2, checksum=True)
    return folder


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "moeify.json").read_text())["files"]


def test_what_is_recorded_is_what_sha256sum_says(summed: Path, sources: Sources) -> None:
    files = recorded(summed)
    assert files.keys() == tree(summed).keys() - {"moeify.json", "README.md"}
    for name, entry in files.items():
        raw = (summed / name).read_bytes()
        assert entry == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    plain = summed.with_name("plain")
    moeify.upcycle(sources.dense["qwen3"], plain, num_experts=2)
    assert tree(plain) == tree(summed), "files up to 16 MiB are summed anyway"


def test_large_files_are_summed_when_asked_and_sums_travel_with_links(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_checkpoint, "SMALL_BYTES", 100_000)
    weights = "model-00001-of-00002.safetensors"
    for name, checksum in (("plain", False), ("summed", True)):
        moeify.upcycle(sources.dense["qwen3"], tmp_path / name, num_experts=2, checksum=checksum)
        moeify.attach(tmp_path / name, tmp_path / f"{name}-after")
        for folder in (name, f"{name}-after"):
            assert ("sha256" in recorded(tmp_path / folder)[weights]) is checksum
    report = moeify.inspect(tmp_path / "plain", verify=True)
    assert weights in report.verified.unsummed
    assert any("no recorded checksum" in note for note in report.notes)


def test_damage_that_comes_later_is_found(parent: Nursery, summed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(summed, tmp_path / "moe")
    report = moeify.inspect(folder, verify=True)
    assert not report.problems
    assert report.verified.files == len(recorded(folder))
    assert report.verified.bytes == sum(int(e["bytes"]) for e in recorded(folder).values())
    weights = next(folder.glob("model-00001*"))
    flip(weights, weights.stat().st_size // 2)
    flip(folder / "tokenizer.json", 9)
    with open(folder / "vocab.json", "a") as file:
        file.write(" ")
    (folder / "generation_config.json").unlink()
    place = Place(folder=tmp_path)
    ended = parent.start(place, ["inspect", str(folder), "--verify", "--json"]).wait()
    assert ended.code == 3
    found = {(p["kind"], p["message"].split()[0]) for p in json.loads(ended.stdout)["problems"]}
    assert found == {
        ("checksum", weights.name),
        ("checksum", "tokenizer.json"),
        ("checksum", "vocab.json"),
        ("missing_file", "generation_config.json"),
    }
    assert parent.start(place, ["inspect", str(folder), "-q"]).wait().code == 0


def test_a_source_that_rotted_is_not_linked_with_checksum(summed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(summed, tmp_path / "moe")
    weights = next(folder.glob("model-00001*"))
    flip(weights, weights.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"not what its moeify\.json says"):
        moeify.attach(folder, tmp_path / "out", checksum=True)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


def test_a_checkpoint_without_checksums_cannot_be_verified(parent: Nursery, sources: Sources, tmp_path: Path) -> None:
    line = ["inspect", str(sources.dense["qwen3"]), "--verify"]
    ended = parent.start(Place(folder=tmp_path), line).wait()
    assert "holds no checksums" in check_refusal(ended, ended.stderr)


@pytest.mark.parametrize("files", [[], {"a": 1}, {"a": {"bytes": "x"}}, {"a": {"bytes": 1, "sha256": "zz"}}])
def test_a_list_of_files_in_another_form(summed: Path, tmp_path: Path, files: object) -> None:
    folder = shutil.copytree(summed, tmp_path / "moe")
    document = json.loads((folder / "moeify.json").read_text()) | {"files": files}
    (folder / "moeify.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"unknown form|no checksums"):
        moeify.inspect(folder, verify=True)


def test_names_in_the_list_do_not_lead_out_of_the_folder(summed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(summed, tmp_path / "moe")
    (tmp_path / "secret").write_text("x")
    document = json.loads((folder / "moeify.json").read_text())
    document["files"] = {"../secret": {"bytes": 1, "sha256": "0" * 64}}
    (folder / "moeify.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"'../secret' leads out of the checkpoint folder"):
        moeify.inspect(folder, verify=True)


def test_what_is_pulled_is_what_was_pushed(sources: Sources, tmp_path: Path) -> None:
    """Code is never fetched, so it is not missed."""
    push = next(s for s in scenarios(sources) if s.name == "push gpt2")
    with place_for(push, tmp_path / "place") as (place, _):
        pushed = Running(place, push.line("")).wait()
        assert pushed.code == 0, pushed.stderr
        ended = Running(place, ["inspect", "user/moe", "--verify", "--json"]).wait()
    assert ended.code == 0, ended.stderr
    verified = json.loads(ended.stdout)["verified"]
    listed = recorded(push.source)
    assert verified["absent"] == sorted(name for name in listed if name.endswith(".py"))
    assert verified["files"] == len(listed) - len(verified["absent"])
