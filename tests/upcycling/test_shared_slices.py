"""Slices that all tokens share: one copy, no router, and the same function."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeify
from moeify.errors import ConfigError
from moeify.routing.loading import load_model
from moeify.upcycling.verify import verify
from tests.tiny import save_tiny, state, tolerance


def config_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


IDS = torch.arange(4, 52).reshape(3, 16)


@pytest.fixture(scope="module", params=["bert", "gpt2", "modernbert"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A type, its dense checkpoint, and that with three slices of two experts and one that is shared."""
    folder = tmp_path_factory.mktemp(request.param)
    dense = save_tiny(folder / "dense", request.param)
    report = moeify.upcycle(dense, folder / "moe", slices=4, shared=1, num_experts=2, top_k=1, noise=0)
    assert (report.num_experts, report.top_k, report.slices, report.shared_slices) == (6, 3, 3, 1)
    model = load_model(folder / "moe")
    assert report.params_total == model.num_parameters()
    found = moeify.inspect(folder / "moe")
    assert found.problems == []
    assert (found.params_total, found.params_active) == (report.params_total, report.params_active)
    assert found.num_shared_experts == 1
    return request.param, dense, folder / "moe"


@torch.no_grad()
def test_it_computes_what_the_dense_model_computes(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, dense, moe = made
    assert config_of(moe)["shared_slices"] == 1
    expected = load_model(dense)(IDS).logits
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = load_model(moe)
        model.set_experts_implementation(implementation)
        for scale in (0.0, 1.0, 30.0):
            for name, parameter in model.named_parameters():
                if "router" in name:
                    parameter.normal_(0, scale * 0.1)
            found = model(IDS).logits
            assert (found - expected).norm() <= tolerance(kind) * expected.norm(), (implementation, scale)
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(load_model(tmp_path / "again")(IDS).logits, found)


def test_it_becomes_the_dense_checkpoint_again(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, dense, moe = made
    moeify.extract(moe, tmp_path / "copy", expert=1)
    moeify.extract(moe, tmp_path / "mean", expert=(0, 1))
    moeify.prune(moe, tmp_path / "scored", dense=True, by="random")
    expected = state(dense)
    for name in ("copy", "mean", "scored"):
        found = state(tmp_path / name)
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], atol=1e-6, rtol=1e-6)
    assert "shared_slices" not in config_of(tmp_path / "copy")
    moeify.upcycle(dense, tmp_path / "wider", slices=4, shared=2, num_experts=3, top_k=1, noise=0.1)
    moeify.prune(tmp_path / "wider", tmp_path / "less", keep=4, by="random")
    assert load_model(tmp_path / "less").config.num_experts == 4
    for layer in moeify.inspect(tmp_path / "wider", weights=True, reference=str(dense)).layers:
        assert layer.weights["dense_distance"]["mean"] == pytest.approx(0.1, rel=0.3)
    assert verify(dense, moe).relative_diff <= tolerance(kind)


def test_training_moves_every_tensor_of_the_mixture(made: tuple[str, Path, Path]) -> None:
    model = load_model(made[2]).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(4):
        model(IDS, labels=IDS, output_router_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    parts = {name: p for name, p in model.named_parameters() if any(f".{w}." in name for w in ("router", "shared"))}
    assert len(parts) >= 2 * 3
    for name, parameter in parts.items():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": 1}, "of 1 slices tokens can share 0 to 0, not 1"),
        ({"slices": 4, "shared": 4}, "of 4 slices tokens can share 0 to 3, not 4"),
        ({"slices": 4, "shared": -1}, "not -1"),
        ({"slices": 4, "shared": 1, "experts_from": ("a", "b")}, "--shared does not go with --experts-from"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert")
    with pytest.raises(ConfigError, match=message):
        moeify.upcycle(dense, tmp_path / "moe", **{"num_experts": 2, "top_k": 1, **options})
    assert not (tmp_path / "moe").exists()


def test_no_expert_joins_and_a_missing_part_is_a_problem(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, dense, moe = made
    with pytest.raises(ConfigError, match="no expert can join a mixture in which tokens share slices"):
        moeify.add_experts(moe, tmp_path / "more", experts=[dense])
    shutil.copytree(moe, tmp_path / "broken")
    for file in (tmp_path / "broken").glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if not name.endswith("shared.down_proj")}
        save_file(kept, file, {"format": "pt"})
    (problem,) = moeify.inspect(tmp_path / "broken").problems
    assert "shared.down_proj has shape none, config.json says [" in problem.message
