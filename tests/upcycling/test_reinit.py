"""Neurons drawn anew: as many as asked for, the same in every tensor, the others bit for bit the base's."""

from pathlib import Path

import pytest
import torch

import moeify
from moeify.errors import ConfigError
from tests.tiny import save_tiny, state

UP, BIAS, DOWN = "intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight"
LAYER = "bert.encoder.layer.2."


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_other_neurons_stay_as_they_are(share: float, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert")
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, reinit=share)
    assert any("does not compute what the dense model computes" in warning for warning in report.warnings)
    assert "does not compute what its base computes" in (tmp_path / "moe" / "README.md").read_text()
    base, found = state(dense), state(tmp_path / "moe")
    experts = f"{LAYER}intermediate.experts."
    drawn = []
    for expert in range(3):
        up = (found[f"{experts}up_proj"][expert] != base[LAYER + UP]).any(1)
        down = (found[f"{experts}down_proj"][expert] != base[LAYER + DOWN]).any(0)
        bias = found[f"{experts}up_proj_bias"][expert] != base[LAYER + BIAS]
        assert up.sum() == round(48 * share)
        assert torch.equal(up, down)
        assert torch.equal(up, bias)
        # Every value of a neuron that goes is drawn.
        assert (found[f"{experts}up_proj"][expert] != base[LAYER + UP]).all(1).sum() == up.sum()
        drawn.append(up)
    assert share == 1 or not torch.equal(drawn[0], drawn[1])
    assert torch.equal(found[f"{experts}down_proj_bias"][0], base[f"{LAYER}output.dense.bias"])


def test_draws_have_the_mean_and_deviation_of_their_tensor_and_repeat(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    for name in ("moe", "again"):
        moeify.upcycle(dense, tmp_path / name, num_experts=8, top_k=2, reinit=1.0, max_shard_size="100KB")
    base, found, again = state(dense), state(tmp_path / "moe"), state(tmp_path / "again")
    assert all(torch.equal(found[name], again[name]) for name in found)
    for role in ("gate", "up", "down"):
        source = base[f"model.layers.0.mlp.{role}_proj.weight"]
        experts = torch.stack([found[f"model.layers.0.mlp.experts.{e}.{role}_proj.weight"] for e in range(8)])
        assert experts.mean() == pytest.approx(float(source.mean()), abs=0.03 * float(source.std()))
        assert experts.std() == pytest.approx(float(source.std()), rel=0.03)
        assert experts.flatten(1).unique(dim=0).shape[0] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reinit": 1.5}, "between 0 and 1, not 1.5"),
        ({"reinit": 0.5, "slices": 4}, "has no use for --reinit"),
        ({"recipe": "redrawn"}, "--recipe redrawn needs --reinit"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        moeify.upcycle(tmp_path, tmp_path / "moe", **options)
