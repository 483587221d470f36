"""Null experts on disk: written, exact, known to every command, and refused where no class has them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import moeify
from moeify.errors import CheckpointError, ConfigError
from moeify.upcycling.config import UpcycleConfig
from tests.tiny import save_tiny, state, tolerance

IDS = torch.arange(4, 52).reshape(3, 16)
NULLS: dict[str, Any] = {"num_experts": 4, "null_experts": 3, "null_kinds": ("zero", "copy", "constant")}


def model_of(folder: Path, **options: Any) -> Any:
    config = json.loads((folder / "config.json").read_text())
    masked = "Masked" in config["architectures"][0]
    return (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(folder, **options).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "modernbert", "distilbert", "gemma2"])
def test_every_class_computes_what_the_dense_model_computes(kind: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", kind)
    report = moeify.upcycle(dense, tmp_path / "moe", top_k=2, noise=0, router_bias=True, **NULLS)
    found = moeify.inspect(tmp_path / "moe")
    assert found.problems == [] and found.params_total == report.params_total
    assert found.params_active == report.params_active
    assert found.router is not None and found.router.null_experts == report.null_experts == 3
    expected = model_of(dense)(IDS).logits
    for implementation in ("eager", "grouped_mm"):
        logits = model_of(tmp_path / "moe", experts_implementation=implementation)(IDS).logits
        assert (logits - expected).norm() <= tolerance(kind) * expected.norm()
    moeify.prune(tmp_path / "moe", tmp_path / "again", keep=1, dense=True, by="aimer")
    base, back = state(dense), state(tmp_path / "again")
    assert base.keys() == back.keys() and all(torch.equal(base[name], back[name]) for name in base)


def test_in_half_precision_and_a_sequence_at_a_time(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2", dtype="bfloat16")
    for unit in ("token", "sequence"):
        moeify.upcycle(dense, tmp_path / unit, noise=0, route_by=unit, **NULLS)
        assert moeify.verify(dense, tmp_path / unit).relative_diff <= tolerance("gpt2", "bfloat16")
    card = (tmp_path / "token" / "README.md").read_text()
    assert "visits 2 of them, or fewer where it chooses one of 3 null experts behind the first" in card
    assert "2410.07348" in card


def test_other_commands_leave_them_as_they_are(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    moeify.upcycle(dense, tmp_path / "moe", **NULLS)
    model = model_of(tmp_path / "moe")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".nulls." in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "trained")
    before = {name: tensor for name, tensor in state(tmp_path / "trained").items() if ".nulls." in name}
    assert len(before) == 12
    moeify.prune(tmp_path / "trained", tmp_path / "pruned", keep=2, by="aimer")
    moeify.prune(tmp_path / "trained", tmp_path / "merged", keep=3, by="aimer", merge=True)
    moeify.add_experts(tmp_path / "trained", tmp_path / "grown", experts=(str(dense),))
    for name in ("pruned", "merged", "grown"):
        after = state(tmp_path / name)
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        assert moeify.inspect(tmp_path / name).problems == []
        assert torch.isfinite(model_of(tmp_path / name)(IDS).logits).all()
    moeify.attach(tmp_path / "trained", tmp_path / "fresh")
    fresh = state(tmp_path / "fresh")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, fresh[name])}
    assert changed == {name for name in before if name.endswith("nulls.router.weight")}
    for command, options in ((moeify.extract, {"expert": 1}), (moeify.prune, {"keep": 1, "dense": True})):
        with pytest.raises(CheckpointError, match=r"has null experts \('.*scale' is not zero\)"):
            command(tmp_path / "trained", tmp_path / "refused", **options)
    with pytest.raises(ConfigError, match="a token has two choices or more"):
        moeify.attach(tmp_path / "trained", tmp_path / "refused", top_k=1)
    assert not (tmp_path / "refused").exists()


def test_a_checkpoint_that_lacks_a_part_of_them_is_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    moeify.upcycle(dense, tmp_path / "moe", **NULLS)
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config | {"null_experts": 6}))
    problems = [problem.message for problem in moeify.inspect(tmp_path / "moe").problems]
    assert "layers 0-3: mlp.nulls.router.weight has shape [3, 32], config.json says [6, 32]" in problems
    assert "layers 0-3: mlp.nulls.scale has shape [1], config.json says [2]" in problems


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null_experts": -1}, "0 to 4096 null experts, not -1"),
        ({"null_experts": 2, "top_k": 1}, "take the place of a token's second"),
        ({"null_experts": 2, "slices": 4}, "does not go with --slices"),
        ({"null_experts": 2, "null_kinds": ("nothing",)}, "'nothing' is no kind"),
        ({"null_experts": 1, "null_kinds": ("zero", "copy")}, "2 kinds for 1 null experts"),
        ({"null_kinds": ("copy",)}, "--null-kinds belongs to --null-experts"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UpcycleConfig(**options)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    with pytest.raises(ConfigError, match="--null-experts needs a class of moeify's own, and qwen3_moe"):
        moeify.upcycle(dense, tmp_path / "moe", null_experts=2)
