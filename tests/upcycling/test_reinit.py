"""Neurons drawn anew: as many as asked for, the same in every tensor, the others bit for bit the base's."""

from pathlib import Path

import pytest
import torch

import moeify
from moeify.errors import ConfigError
from moeify.routing.config import DataConfig
from moeify.routing.data import read_blocks, tokenizer_for
from moeify.routing.loading import load_model
from tests.matrix.sources import DEMO as SHIPPED
from tests.matrix.sources import TEXT, TOKENS, add_tokenizer
from tests.tiny import save_tiny, state

DEMO = SHIPPED / "gpt2"

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


@torch.no_grad()
def loss_by_hand(folder: Path, seed: int = 0) -> float:
    """Nats a token, as transformers counts them."""
    blocks = read_blocks(DataConfig(dataset=str(TEXT), seed=seed), tokenizer_for(DEMO), 64, 1024)
    rows = [blocks.input_ids[n, : blocks.lengths[n]] for n in range(len(blocks))]
    model, total, count = load_model(folder), 0.0, 0
    for row in rows:
        ids = torch.tensor(row[None].astype("int64"))
        total += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
        count += len(row) - 1
    return total / count


def test_the_loss_before_training_stands_beside_the_base(tmp_path: Path) -> None:
    text = {"dataset": str(TEXT), "fit_tokens": 1024, "seq_len": 64}
    report = moeify.upcycle(DEMO, tmp_path / "moe", num_experts=4, reinit=0.5, **text)
    assert report.start is not None and report.start.loss == "causal"
    assert report.start.tokens == 1024
    assert report.start.dense == pytest.approx(loss_by_hand(DEMO), rel=1e-4)
    assert report.start.mixture == pytest.approx(loss_by_hand(tmp_path / "moe"), rel=1e-4)
    assert report.start.mixture > report.start.dense + 0.1
    card = (tmp_path / "moe" / "README.md").read_text()
    assert f"(causal loss {report.start.mixture:.4g} in place of {report.start.dense:.4g})" in card
    assert moeify.upcycle(DEMO, tmp_path / "none", num_experts=4, reinit=0.5).start is None
    assert moeify.upcycle(DEMO, tmp_path / "dry", reinit=0.5, dry_run=True, **text).start is None


def test_without_a_language_head_it_is_the_distance_from_the_base(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert", "BertModel", vocab_size=TOKENS)
    add_tokenizer(dense)
    text = {"dataset": str(TEXT), "fit_tokens": 1024, "seq_len": 32}
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=4, reinit=0.5, **text)
    assert report.start is not None and (report.start.loss, report.start.dense) == ("distill", 0.0)
    assert 0.001 < report.start.mixture < 4
    assert "last hidden states are" in (tmp_path / "moe" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reinit": 1.5}, "between 0 and 1, not 1.5"),
        ({"dataset": "text.txt"}, "--dataset has no use"),
        ({"reinit": 0.5, "slices": 4}, "has no use for --reinit"),
        ({"recipe": "redrawn"}, "--recipe redrawn needs --reinit"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        moeify.upcycle(tmp_path, tmp_path / "moe", **options)
