"""Tokens and the home folder are in nothing that is written, and in nothing that is printed."""

import json
from pathlib import Path

import pytest

from moeify.cli._output import plain
from moeify.provenance.record import Record, Step
from tests.faults.in_process import moeify
from tests.faults.words import write_tokenizer
from tests.tiny import save_tiny

TOKEN = "hf_ATokenThatMustNeverBeSeenAnywhere"
USER = "somebody-in-particular"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home") / USER
    write_tokenizer(save_tiny(home / "models" / "dense", "gpt2"), "gpt2")
    (home / "text.txt").write_text("the cat sat on the mat 1 2 3\n\n" * 60)
    return home


def test_no_command_says_or_writes_who_and_where(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    models, text = home / "models", home / "text.txt"
    dense, moe = models / "dense", models / "moe"
    printed = [
        moeify("upcycle", dense, moe, "--experts", 4),
        moeify(
            "warmup",
            moe,
            models / "warm",
            "--dataset",
            text,
            "--steps",
            1,
            "--reference",
            dense,
            "--seq-len",
            16,
            "--batch",
            2,
            "--plot",
            home / "plot.svg",
        ),
        moeify(
            "prune",
            moe,
            models / "half",
            "--keep",
            2,
            "--dataset",
            text,
            "--seq-len",
            16,
            "--scores",
            home / "scores.json",
        ),
        moeify("verify", dense, moe, "--text", text, "--seq-len", 8),
        moeify("inspect", moe, "--html", home / "page.html", "--weights"),
        moeify("push", models / "half", "me/x"),
        moeify("upcycle", dense, moe),
        moeify("upcycle", home / "absent"),
        moeify("inspect", home),
        moeify("attach", dense),
        moeify("upcycle", dense, models / "wide", "--layers", "99"),
    ]
    assert [done.code for done in printed] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    for done in printed:
        assert USER not in done.text and TOKEN not in done.text, done.text
    written = [path for path in home.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert {"scores.json", "plot.svg", "page.html"} <= {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        assert USER.encode() not in content and TOKEN.encode() not in content, path


def test_options_are_recorded_without_paths_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.txt").write_text("x")
    options = {
        "dataset": str(tmp_path / "data" / "text.txt"),
        "dense": "~/dense",
        "hub": "user/name",
        "list": [Path("/a/b"), f"x {TOKEN} y"],
        "inner": {"path": "../secret/place"},
        "n": 3,
    }
    step = Step(command="upcycle", options=options, results={})
    Record(source="dense", steps=(step,)).write(tmp_path)
    found = json.loads((tmp_path / "moeify.json").read_text())["steps"][0]["options"]
    assert found == {
        "dataset": "text.txt",
        "dense": "dense",
        "hub": "user/name",
        "list": ["b", "x hf_*** y"],
        "inner": {"path": "place"},
        "n": 3,
    }


def test_only_the_home_folder_itself_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert plain("cannot read /home/me/x, '/home/me' or /home/me") == "cannot read ~/x, '~' or ~"
    for other in ("/home/meg/x", "/srv/home/me/x", "x/home/me"):
        assert plain(other) == other
    monkeypatch.setenv("HOME", "/")
    assert plain("/tmp/x") == "/tmp/x"
