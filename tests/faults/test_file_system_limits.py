"""Names and folders at the limits of what file systems know."""

import shutil
from pathlib import Path

import pytest

from moeify.checkpoint.carry import carry_files
from moeify.errors import OutputError
from tests.faults.in_process import moeify
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("limits") / "dense", "gpt2")


NAMES = ["with space", "ünïcode-\u6a21\u578b", "e\u0301", "-x", "it's", "a\nb", ".hidden", "x" * 200, "\u6a21" * 70]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(dense: Path, tmp_path: Path, name: str) -> None:
    source, target = tmp_path / name / name, tmp_path / "to" / name
    shutil.copytree(dense, source)
    assert moeify("upcycle", source, target, "--experts", 4).code == 0
    assert moeify("inspect", target).code == 0
    assert sorted(path.name for path in target.parent.iterdir()) == [name]


@pytest.mark.parametrize("name", ["x" * 255, "x" * 245, "\u6a21" * 85])
def test_an_output_whose_stage_would_be_too_long_is_refused(dense: Path, tmp_path: Path, name: str) -> None:
    done = moeify("upcycle", dense, tmp_path / "to" / name)
    assert done.code == 1 and "shorter name" in done.err, done.text
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 2100 + "x", "a\0b"])
def test_a_source_that_no_file_system_knows(tmp_path: Path, name: str) -> None:
    for command in ("upcycle", "inspect", "attach", "prune", "push"):
        more = ["--keep", 2] if command == "prune" else ["me/x"] if command == "push" else []
        done = moeify(command, tmp_path / name, *more)
        assert done.code == 1 and "bug in moeify" not in done.err, done.text


def test_the_folder_one_is_in(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(dense, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert moeify("upcycle", ".", "../out").code == 0
    assert '"source": "here"' in (tmp_path / "out" / "moeify.json").read_text()
    done = moeify("upcycle", ".")
    assert done.code == 1 and "inside one another" in done.err


def test_odd_files_beside_the_weights(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "dense"
    shutil.copytree(dense, source)
    names = {*(f"{name}.txt" for name in NAMES), "x" * 251 + ".txt", "Tokenizer.json", "TOKENIZER.json"}
    for name in names:
        (source / name).write_bytes(b"" if name != "e\u0301.txt" else b"x")
    assert moeify("upcycle", source, tmp_path / "out").code == 0
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert names <= there


def test_two_names_that_are_one_file_to_the_target(tmp_path: Path) -> None:
    """What a file system without capitals does, shown by a link that makes two names one file."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "1_Sub").mkdir(parents=True)
    (target / "1_Sub").mkdir(parents=True)
    for name in ("Vocab.txt", "vocab.txt"):
        (source / "1_Sub" / name).write_text(name)
    (target / "1_Sub" / "vocab.txt").symlink_to("Vocab.txt")
    with pytest.raises(OutputError, match="are one file"):
        carry_files(source, target)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "moeify.json"])
def test_empty_files(dense: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "dense"
    shutil.copytree(dense, source)
    (source / name).write_bytes(b"")
    done = moeify("upcycle", source, tmp_path / "out")
    assert done.code == 1 and name in done.err and not (tmp_path / "out").exists(), done.text


@pytest.mark.slow
def test_ten_thousand_other_files(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "dense"
    shutil.copytree(dense, source)
    (source / "1_Many").mkdir()
    for number in range(10_000):
        (source / "1_Many" / f"{number}.txt").touch()
    assert moeify("inspect", source).code == 0
    assert moeify("upcycle", source, "--dry-run").code == 0
    (tmp_path / "out").mkdir()
    carry_files(source, tmp_path / "out")
    assert len(list((tmp_path / "out" / "1_Many").iterdir())) == 10_000
