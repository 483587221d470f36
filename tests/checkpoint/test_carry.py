"""What goes along with the weights, and what must not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moeify.checkpoint.carry import carried_files, carry_files
from moeify.errors import CheckpointError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_everything_but_weights_code_and_exports_goes_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    kept = ["tokenizer.json", "vocab.txt", "generation_config.json", "modules.json",
            "1_Pooling/config.json", "2_Dense/model.safetensors", "deep/er/file", ".gitattributes",
            "with space", "ünïcode.txt"]  # fmt: skip
    left = ["config.json", "moeify.json", "README.md", "model.safetensors", "pytorch_model.bin",
            "model.safetensors.index.json", "rust_model.ot", "optimizer.pt", "modeling_x.py",
            "sub/code.py", "onnx/model.onnx", "openvino/model.xml", ".git/HEAD",
            ".cache/huggingface/x", "checkpoint-500/rng.json"]  # fmt: skip
    touch(source, *kept, *left)
    target.mkdir()
    carry_files(source, target)
    found = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert found == set(kept)
    assert (target / "deep/er/file").read_text() == "deep/er/file"


@pytest.mark.parametrize("name", ["outside.txt", "folder"])
def test_links_out_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "elsewhere", "secret")
    source = tmp_path / "source"
    source.mkdir()
    target = tmp_path / "elsewhere" if name == "folder" else tmp_path / "elsewhere" / "secret"
    (source / name).symlink_to(target)
    with pytest.raises(CheckpointError, match="link out"):
        list(carried_files(source))


def test_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        list(carried_files(tmp_path))
