"""Every command knows the one element that keeps dense classes from loading a mixture."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import moeify
from moeify.checkpoint.reader import Checkpoint
from tests.families.test_contract import load_strictly
from tests.tiny import save_tiny

GUARDS = {
    "bert": "bert.encoder.layer.{layer}.intermediate.dense.weight",
    "gpt2": "transformer.h.{layer}.mlp.c_fc.weight",
}
pytestmark = pytest.mark.parametrize("family", GUARDS)


def guards(folder: Path) -> dict[str, str]:
    """Names of guards and their files."""
    return {
        name: stored.path.name
        for name, stored in Checkpoint.open(folder).tensors.items()
        if stored.elements == 1 and name.endswith(("intermediate.dense.weight", "c_fc.weight"))
    }


def routers_file(folder: Path) -> str:
    (file,) = {
        stored.path.name for name, stored in Checkpoint.open(folder).tensors.items() if name.endswith("router.weight")
    }
    return file


def dense_bytes(folder: Path) -> dict[str, torch.Tensor]:
    found = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, found).from_pretrained(folder).state_dict()


def test_commands_carry_it_beside_the_routers_and_count_it_nowhere(tmp_path, family):
    dense, moe = save_tiny(tmp_path / "dense", family), tmp_path / "moe"
    report = moeify.upcycle(dense, moe, num_experts=4, noise=0.0)
    moeify.attach(moe, tmp_path / "attached", router="normal")
    moeify.prune(moe, tmp_path / "pruned", keep=2, by="aimer")
    moeify.add_experts(moe, tmp_path / "added", experts=[str(dense)])
    for name in ("moe", "attached", "pruned", "added"):
        folder = tmp_path / name
        assert guards(folder) == {GUARDS[family].format(layer=0): routers_file(folder)}, name
        seen = moeify.inspect(folder)
        assert not seen.problems, name
        parameters = sum(p.numel() for p in load_strictly(folder).parameters())
        assert seen.params_total == parameters, name
        with pytest.raises(RuntimeError, match="mismatch"):
            dense_class = json.loads((dense / "config.json").read_text())["architectures"][0]
            getattr(transformers, dense_class).from_pretrained(folder)
    assert report.params_total == moeify.inspect(moe).params_total
    assert moeify.verify(dense, tmp_path / "attached").relative_diff <= 1e-6


def test_a_dense_model_has_none(tmp_path, family):
    dense, moe = save_tiny(tmp_path / "dense", family), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=4, noise=0.0)
    moeify.prune(moe, tmp_path / "pruned", keep=1, dense=True, by="aimer")
    moeify.extract(moe, tmp_path / "extracted", expert=2)
    expected = dense_bytes(dense)
    for name in ("pruned", "extracted"):
        assert not guards(tmp_path / name)
        found = dense_bytes(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_it_stands_in_the_first_layer_with_experts(tmp_path, family):
    dense, moe = save_tiny(tmp_path / "dense", family), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=2, layers="odd", noise=0.0)
    assert [*guards(moe)] == [GUARDS[family].format(layer=1)]
    assert not moeify.inspect(moe).problems
    assert moeify.verify(dense, moe).relative_diff <= 1e-6
