"""Names and links that lead elsewhere: nothing is read or written there, nothing waited for."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from moeify.errors import MoeifyError
from moeify.provenance.card import card_text
from tests.faults.in_process import moeify
from tests.faults.words import write_tokenizer
from tests.tiny import save_tiny

SECRET = "the-content-of-a-secret"
LOADS = {"--dataset", "--text"}
LOADED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    write_tokenizer(save_tiny(folder / "dense", "gpt2"), "gpt2")
    assert moeify("upcycle", folder / "dense", folder / "moe", "--experts", 4).code == 0
    return folder


@pytest.fixture(params=["dense", "moe"])
def checkpoint(request: pytest.FixtureRequest, work: Path, tmp_path: Path) -> Path:
    shutil.copytree(work / request.param, tmp_path / "in" / "checkpoint")
    return tmp_path / "in" / "checkpoint"


def commands(checkpoint: Path, *, loading: bool = True) -> list[list[object]]:
    """Everything that reads the folder and writes beside it, or all but what loads models."""
    return [line for line in _commands(checkpoint) if loading or not LOADS & {*map(str, line)}]


def _commands(checkpoint: Path) -> list[list[object]]:
    out = checkpoint.parent / "out"
    text = checkpoint.parent / "text.txt"
    text.write_text("the cat sat on the mat 1 2 3\n\n" * 60)
    if (checkpoint / "moeify.json").exists():
        small = ["--max-tokens", 200, "--seq-len", 16]
        return [
            ["inspect", checkpoint],
            ["inspect", checkpoint, "--weights"],
            ["inspect", checkpoint, "--dataset", text, *small],
            ["attach", checkpoint, out],
            ["extract", checkpoint, out, "--expert", 1],
            ["prune", checkpoint, out, "--keep", 2, "--by", "random"],
            ["prune", checkpoint, out, "--keep", 2, "--dataset", text, *small],
            ["warmup", checkpoint, out, "--dataset", text, "--steps", 0, "--seq-len", 16],
        ]
    return [
        ["inspect", checkpoint],
        ["upcycle", checkpoint, out],
        ["upcycle", checkpoint, "--dry-run"],
        ["verify", checkpoint, checkpoint, "--text", text, "--seq-len", 8],
    ]


def harmless(checkpoint: Path, *, loading: bool) -> None:
    """No command crashes, waits, or hands on what lies outside the folder."""
    for line in commands(checkpoint, loading=loading):
        done = moeify(*line)
        assert done.code in (0, 1, 3) and "bug in moeify" not in done.err, done.text
        assert SECRET not in done.text
        out = checkpoint.parent / "out"
        if out.exists():
            held = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
            assert SECRET.encode() not in held
            shutil.rmtree(out)


@pytest.mark.parametrize(
    "name",
    [
        "../../elsewhere/secret",
        "{absolute}",
        "a/../../../elsewhere/secret",
        "..\\secret",
        "link",
        "/dev/zero",
        "x" * 300,
        "e" * 300 + "/" + "f" * 300,
        "sub",
    ],
)
def test_an_index_leads_nowhere_else(checkpoint: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "elsewhere" / "secret"
    outside.parent.mkdir()
    shutil.move(max(checkpoint.glob("*.safetensors")), outside)
    (checkpoint / "link").symlink_to(outside)
    (checkpoint / "sub").mkdir()
    name = name.format(absolute=outside)
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    for line in commands(checkpoint, loading=name == "link"):
        done = moeify(*line)
        assert done.code == 1 or (line[0], done.code) == ("inspect", 3), done.text
        assert "bug" not in done.err
    assert not (checkpoint.parent / "out").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "socket", "folder", "dangling"])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        WEIGHTS,
        INDEX,
        "moeify.json",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "notes.txt",
        "scores.json",
    ],
)
def test_no_file_is_anything_but_a_file(checkpoint: Path, tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "secret").write_text(f"---\nlicense: {SECRET}\n---\n{SECRET}")
    path = checkpoint / name
    path.unlink(missing_ok=True)
    makers: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to(tmp_path / "secret"),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "socket": lambda: _bind(path),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to(tmp_path / "nothing"),
    }
    makers[kind]()
    harmless(checkpoint, loading=kind == "link" and name in LOADED)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path has room for 107 bytes
        server.bind(path.name)
        os.chdir(here)


def test_text_comes_from_files_only(work: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for text in (tmp_path / "pipe", "/dev/zero", tmp_path):
        done = moeify("verify", work / "dense", work / "moe", "--text", text)
        assert done.code == 1 and "not a regular file" in done.err, done.text
        done = moeify("warmup", work / "moe", tmp_path / "out", "--dataset", text)
        assert done.code == 1 and "bug" not in done.err, done.text
    for name in ("pipe", "absent"):
        done = moeify(
            "prune", work / "moe", tmp_path / "out", "--keep", 2, "--by", "reap", "--scores", tmp_path / name
        )
        assert done.code == 1 and "bug" not in done.err, done.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_for_a_text_leads_nowhere_else(work: Path, tmp_path: Path, kind: str) -> None:
    """datasets unpacks what it takes for an archive, whatever its name, into its own cache."""
    content = b"the cat sat on the mat 1 2 3\n\n" * 60
    names = ["../evil", "../../../../evil", str(tmp_path / "evil"), "good.txt", "link/evil"]
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "text.txt", "w") as zipped:
            for name in names:
                zipped.writestr(name, content)
    else:
        with tarfile.open(tmp_path / "text.txt", "w") as file:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            file.addfile(link)
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    line = [
        sys.executable,
        "-m",
        "moeify",
        "inspect",
        str(work / "moe"),
        "--dataset",
        "text.txt",
        "--max-tokens",
        "100",
    ]
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf")}, capture_output=True, text=True
    )
    assert done.returncode in (0, 1, 3) and "bug in moeify" not in done.stderr, done.stderr
    unpacked = tmp_path / "hf" / "datasets" / "downloads" / "extracted"
    assert unpacked.is_dir()
    for path in tmp_path.rglob("evil"):  # inside of the folder that datasets makes for one archive
        assert len(path.relative_to(unpacked).parts) > 1


def test_a_snapshot_of_the_hub_cache_is_links_and_works(work: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in (work / "dense").iterdir():
        shutil.copy(path, blobs / f"sha-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"sha-{path.name}")
    assert moeify("upcycle", snapshot, tmp_path / "out").code == 0
    assert moeify("verify", snapshot, tmp_path / "out").code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    (snapshot / "notes.txt").symlink_to("/etc/hostname")
    assert moeify("upcycle", snapshot, tmp_path / "again").code == 1


def test_a_card_outside_is_not_read(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    shutil.copytree(work / "moe", folder)
    (tmp_path / "secret").write_text(f"---\nlicense: {SECRET}\n---\n")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    assert SECRET not in card_text(folder)


def test_push_publishes_files_of_the_folder_only(work: Path, tmp_path: Path) -> None:
    from moeify.checkpoint.reader import Checkpoint
    from moeify.hub.listing import local_files

    folder = tmp_path / "moe"
    shutil.copytree(work / "moe", folder)
    (folder / "inner").mkdir()
    opened = Checkpoint.open(folder)
    names = {file.name for file in local_files(opened, "me/x")[0]}
    assert "tokenizer.json" in names
    (tmp_path / "secret").write_text(SECRET)
    for make, left in (
        (lambda path: path.symlink_to(tmp_path / "secret"), "extra.json"),
        (lambda path: path.symlink_to(tmp_path), "folder"),
        (os.mkfifo, "pipe.json"),
        (lambda path: path.symlink_to("/dev/zero"), "zero"),
        (lambda path: path.symlink_to(tmp_path / "nothing"), "dangling"),
    ):
        make(folder / left)
        with pytest.raises(MoeifyError):
            local_files(opened, "me/x")
        (folder / left).unlink()
    assert {file.name for file in local_files(opened, "me/x")[0]} == names
