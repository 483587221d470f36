"""`--route-by sequence`: written, exact for every head, changed afterwards, refused elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import moeify
from moeify.cli.app import app
from moeify.errors import ConfigError
from tests.families.test_contract import load_strictly
from tests.tiny import FAMILY_HEADS, save_tiny, state

OWN_HEADS = [(family, head) for family, head in FAMILY_HEADS if family in ("bert", "gpt2")]


def config_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize(("family", "head"), OWN_HEADS)
def test_every_head_is_exact(tmp_path: Path, family: str, head: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, head)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0, route_by="sequence", layers="odd")
    assert report.route_by == config_of(tmp_path / "moe")["route_by"] == "sequence"
    assert load_strictly(tmp_path / "moe").config.route_by == "sequence"
    comparison = moeify.verify(dense, tmp_path / "moe")
    assert comparison.relative_diff <= 1e-6
    assert comparison.top1_agreement == 1.0


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_bfloat16_with_tied_experts_is_bit_exact(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, dtype="bfloat16")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0, router="zeros", route_by="sequence")
    assert moeify.verify(dense, tmp_path / "moe").bit_exact


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_native_classes_are_refused_before_anything_is_written(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    with pytest.raises(ConfigError, match=f"and {family}_moe is transformers'") as error:
        moeify.upcycle(dense, tmp_path / "moe", route_by="sequence")
    assert "leave --route-by out" in str(error.value.hint)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, route_by="token")
    assert "route_by" not in config_of(tmp_path / "moe")
    with pytest.raises(ConfigError, match="routers decide for each token"):
        moeify.attach(tmp_path / "moe", tmp_path / "fresh", route_by="sequence")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "moe"]


def test_unknown_units_are_refused() -> None:
    for config in (moeify.UpcycleConfig, moeify.AttachConfig):
        with pytest.raises(ConfigError, match="route-by 'word' is unknown"):
            config(route_by="word")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_attach_changes_the_unit_and_keeps_it(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0)
    old = config_of(tmp_path / "moe")
    del old["route_by"]  # as written before the key existed
    (tmp_path / "moe" / "config.json").write_text(json.dumps(old))
    (tmp_path / "moe" / "moe_pooling.py").unlink()
    assert load_strictly(tmp_path / "moe").config.route_by == "token"

    moeify.attach(tmp_path / "moe", tmp_path / "sequence", route_by="sequence")
    first = "model-00001-of-00002.safetensors"
    assert os.path.samefile(tmp_path / "moe" / first, tmp_path / "sequence" / first)
    assert (tmp_path / "sequence" / "moe_pooling.py").exists()
    moeify.attach(tmp_path / "sequence", tmp_path / "again", router="normal")
    for name in ("sequence", "again"):
        assert config_of(tmp_path / name)["route_by"] == "sequence"
        assert moeify.verify(dense, tmp_path / name).relative_diff <= 1e-6
    moeify.attach(tmp_path / "again", tmp_path / "token", route_by="token")
    assert config_of(tmp_path / "token")["route_by"] == "token"


def test_pruning_keeps_the_unit_and_a_dense_model_has_none(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0, route_by="sequence")
    moeify.prune(tmp_path / "moe", tmp_path / "fewer", keep=2, by="aimer")
    assert config_of(tmp_path / "fewer")["route_by"] == "sequence"
    assert moeify.verify(dense, tmp_path / "fewer").relative_diff <= 1e-6
    moeify.extract(tmp_path / "moe", tmp_path / "one", expert=1)
    assert "route_by" not in config_of(tmp_path / "one")
    assert all(torch.equal(tensor, state(tmp_path / "one")[n]) for n, tensor in state(dense).items())


def test_the_command_line(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    arguments = ["upcycle", str(dense), str(tmp_path / "moe"), "--experts", "4"]
    done = CliRunner().invoke(app, [*arguments, "--route-by", "sequence", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["route_by"] == "sequence"
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "moe")])
    assert "by sequence" in shown.stdout
    document = CliRunner().invoke(app, ["inspect", str(tmp_path / "moe"), "--json"])
    assert json.loads(document.stdout)["router"]["route_by"] == "sequence"
    done = CliRunner().invoke(app, ["attach", str(tmp_path / "moe"), str(tmp_path / "out"), "--route-by", "token"])
    assert done.exit_code == 0, done.output
    assert config_of(tmp_path / "out")["route_by"] == "token"
    assert "Each sequence visits 2" in (tmp_path / "moe" / "README.md").read_text()
