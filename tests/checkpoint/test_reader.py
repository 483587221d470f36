"""Opening a checkpoint: index, shards, links, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, TensorNotFoundError


def shards(folder: Path, index: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": np.zeros(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.ones(3, np.float32)}, folder / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"} if index is None else index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_read_by_the_index(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(shards(tmp_path))
    assert {name: tensor.path.name for name, tensor in checkpoint.tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }
    with pytest.raises(TensorNotFoundError, match="'c' is missing"):
        checkpoint["c"]


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"a": "three.safetensors"}, "names 'three.safetensors'"),
        ({"a": "two.safetensors", "b": "one.safetensors"}, "does not hold"),
        ({"a": "../outside.safetensors"}, "leads out"),
        ({"a": "/etc/passwd"}, "leads out"),
        ({"a": ""}, "leads out"),
        ({"a": 5}, "must name files"),
        ({}, "no weight_map"),
    ],
)
def test_bad_indexes(tmp_path: Path, index: dict[str, str], reason: str) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint.open(shards(tmp_path / "model", index))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    save_file({"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="two files"):
        Checkpoint.open(tmp_path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds neither"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(CheckpointError, match=r"holds pytorch_model\.bin") as caught:
        Checkpoint.open(tmp_path)
    assert "save_pretrained" in (caught.value.hint or "")


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="link out"):
        Checkpoint.open(folder)


def test_links_of_the_hub_cache_work(tmp_path: Path) -> None:
    blobs = tmp_path / "models--me--m" / "blobs"
    snapshot = tmp_path / "models--me--m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text('{"model_type": "bert"}')
    save_file({"a": np.zeros(2, np.float32)}, blobs / "2")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    assert set(Checkpoint.open(snapshot).tensors) == {"a"}


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.open(tmp_path)
