"""A recipe from outside the package: the one that docs/extending.md shows, and an exact one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import moeify
from moeify.upcycling.recipes import RECIPES, Recipe, register_recipe
from tests.tiny import save_tiny

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example() -> str:
    section = PAGE.read_text().split("## A recipe\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = dict(RECIPES)
    yield
    RECIPES.clear()
    RECIPES.update(before)


class Shuffled(Recipe):
    """Every expert has its neurons in an order of its own, which changes nothing."""

    def piece(self, of, layer, role, expert):
        draw = np.random.default_rng((layer, expert))
        return of.piece(layer, role, expert, index=draw.permutation(of.width))


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2", "qwen3"])
def test_shuffled_neurons_compute_the_dense_function(family: str, tmp_path: Path) -> None:
    register_recipe("shuffled", Shuffled())
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
    exec(example(), {})
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
    exec(example(), {})
    dense = save_tiny(tmp_path / "dense", "bert")
    with pytest.raises(moeify.MoeifyError, match="24 neurons, and in bert_moe they have 48"):
        moeify.upcycle(dense, tmp_path / "moe", recipe="halves")
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "nonsense"}, "'nonsense' is unknown"),
        ({"recipe": "sources"}, "which names none"),
        ({"recipe": "copies", "experts_from": ("a", "b")}, "no use for --experts-from"),
    ],
)
def test_recipes_that_do_not_fit_the_other_options(options: dict, message: str) -> None:
    with pytest.raises(moeify.MoeifyError, match=message):
        moeify.UpcycleConfig(**options)
    with pytest.raises(moeify.MoeifyError, match="there is a recipe 'copies' already"):
        register_recipe("copies", Shuffled())


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    start = f"{example()}\nfrom moeify.__main__ import main\nmain()"
    arguments = ["upcycle", dense, tmp_path / "moe", "--experts", 2, "--recipe", "halves", "--json"]
    command = [sys.executable, "-c", start, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_experts"] == 2
