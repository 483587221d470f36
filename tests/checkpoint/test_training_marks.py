"""Names of wrappers and tensors without values, as training frameworks save them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.training_marks import unwrapped
from moeify.errors import CheckpointError
from moeify.inspection.inspect import inspect
from moeify.routing.loading import load_model
from moeify.upcycling.attach import attach
from moeify.upcycling.upcycle import upcycle
from tests.tiny import save_tiny


def renamed(folder: Path, change: object) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({change(name): tensor for name, tensor in tensors.items()}, path)  # type: ignore[operator]
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name: f"_orig_mod.{name}", "_orig_mod."),
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"module._orig_mod.{name}", "_orig_mod. and module."),
        (lambda name: f"base_model.model.{name}", "base_model.model."),
        (
            lambda name: (
                "_fsdp_wrapped_module."
                + name.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
            ),
            "_checkpoint_wrapped_module. and _fsdp_wrapped_module.",
        ),
    ],
)
def test_wrappers_are_taken_off_and_named(tmp_path: Path, change: object, said: str) -> None:
    plain = save_tiny(tmp_path / "plain", "qwen2")
    wrapped = renamed(save_tiny(tmp_path / "wrapped", "qwen2"), change)
    assert Checkpoint.open(wrapped).tensors.keys() == Checkpoint.open(plain).tensors.keys()
    report = inspect(wrapped)
    assert report.problems == [] and any(said in note for note in report.notes)
    for source, name in ((plain, "a"), (wrapped, "b")):
        done = upcycle(source, tmp_path / name, num_experts=2)
        assert any(said in warning for warning in done.warnings) is (source == wrapped)
    for path in sorted((tmp_path / "a").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    with pytest.raises(CheckpointError, match="random weights"):
        load_model(wrapped)


def test_a_file_with_wrapped_names_is_never_linked(tmp_path: Path) -> None:
    """attach links what it does not change: such a file would bring its names along."""
    upcycle(save_tiny(tmp_path / "dense", "qwen2"), tmp_path / "moe", num_experts=2)
    for path in (tmp_path / "moe").glob("*.safetensors"):
        save_file({f"module.{name}": t for name, t in load_file(path).items()}, path)
    (tmp_path / "moe" / "model.safetensors.index.json").unlink()
    tensors = [load_file(p) for p in sorted((tmp_path / "moe").glob("*.safetensors"))]
    save_file({k: v for part in tensors for k, v in part.items()}, tmp_path / "moe" / "model.safetensors")
    attach(tmp_path / "moe", tmp_path / "out")
    assert Checkpoint.open(tmp_path / "out").wrappers == ()
    load_model(tmp_path / "out")


def test_names_that_only_look_wrapped_stay(tmp_path: Path) -> None:
    names = ("module.a", "b", "x_orig_mod.c")
    tensors = {name: np.zeros(2, np.float32) for name in names}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert set(Checkpoint.open(tmp_path).tensors) == {*names}
    assert unwrapped({}) == ({}, ())


def test_what_zero_3_leaves_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "qwen2")
    tensors = load_file(folder / "model.safetensors")
    gone = {n: np.empty(0, np.float32) if t.ndim == 2 else t for n, t in tensors.items()}
    save_file(gone, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="ZeRO-3") as caught:
        Checkpoint.open(folder)
    assert "zero_to_fp32.py" in (caught.value.hint or "")
    assert "empty_tensors" in {problem.kind for problem in inspect(folder).problems}
