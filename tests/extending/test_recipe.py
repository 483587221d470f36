"""A recipe from outside the package: the one that docs/extending.md shows, and an exact one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import moeify
from moeify.extend import register_recipe
from moeify.upcycling.recipes import RECIPES, Recipe
from tests.extending.documented import example, installed, run
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = dict(RECIPES)
    yield
    RECIPES._rows = before


class Shuffled(Recipe):
    """Every expert has its neurons in an order of its own, which changes nothing."""

    def piece(self, of, layer, role, expert):
        draw = np.random.default_rng((layer, expert))
        return of.piece(layer, role, expert, index=draw.permutation(of.width))


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2", "qwen3"])
def test_shuffled_neurons_compute_the_dense_function(family: str, tmp_path: Path) -> None:
    register_recipe(Shuffled(name="shuffled"))
    dense = save_tiny(tmp_path / "dense", family)
    moeify.upcycle(dense, tmp_path / "copies", num_experts=3, noise=0)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=3, noise=0, recipe="shuffled")
    report = moeify.verify(dense, tmp_path / "moe")
    assert report.relative_diff <= 1e-6 and report.top1_agreement == 1
    step = json.loads((tmp_path / "moe" / "moeify.json").read_text())["steps"][-1]
    assert step["options"]["recipe"] == "shuffled"
    found, copies = (
        {k: v for p in (tmp_path / name).glob("*.safetensors") for k, v in load_file(p).items()}
        for name in ("moe", "copies")
    )
    moved = [name for name, value in found.items() if not torch.equal(value, copies[name])]
    assert moved and all("expert" in name for name in moved)


@torch.no_grad()
def test_the_recipe_of_the_page(tmp_path: Path) -> None:
    exec(example("A recipe"), {})
    dense = save_tiny(tmp_path / "dense", "qwen3")
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, noise=0, recipe="halves")
    assert any("half the neurons" in warning for warning in report.warnings)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    assert model.config.moe_intermediate_size == 24
    assert sum(p.numel() for p in model.parameters()) == report.params_total
    name = "model.layers.1.mlp.{}{}_proj.weight"
    whole = load_file(dense / "model.safetensors")
    files = (load_file(path) for path in (tmp_path / "moe").glob("*.safetensors"))
    made = {name: value for file in files for name, value in file.items()}
    down, up = (made[name.format("experts.2.", role)] for role in ("down", "up"))
    rows = [whole[name.format("", "up")].tolist().index(row) for row in up.tolist()]
    assert len(set(rows)) == 24
    assert torch.equal(down, 2 * whole[name.format("", "down")][:, rows])


def test_a_class_without_a_place_for_the_width_is_refused(tmp_path: Path) -> None:
    exec(example("A recipe"), {})
    dense = save_tiny(tmp_path / "dense", "bert")
    with pytest.raises(moeify.MoeifyError, match="24 neurons, and in bert_moe they have 48"):
        moeify.upcycle(dense, tmp_path / "moe", recipe="halves")
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "nonsense"}, "'nonsense' is unknown"),
        ({"recipe": "sources"}, "needs --experts-from"),
        ({"recipe": "copies", "experts_from": ("a", "b")}, "no use for --experts-from"),
    ],
)
def test_recipes_that_do_not_fit_the_other_options(options: dict, message: str) -> None:
    with pytest.raises(moeify.MoeifyError, match=message):
        moeify.UpcycleConfig(**options)
    with pytest.raises(moeify.MoeifyError, match="there is a recipe 'copies' already"):
        register_recipe(Shuffled(name="copies"))


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    place = installed(tmp_path / "installed", example("A recipe"))
    shown = run(place, "upcycle", "--help", cwd=tmp_path).stdout
    assert "half of the neurons" in " ".join(shown.replace("│", " ").split())
    arguments = ["upcycle", dense, "moe", "--experts", 2, "--recipe", "halves", "--json"]
    done = run(place, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_experts"] == 2
