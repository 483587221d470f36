"""Merged experts: aligned neurons, the right weights, the right neighbours."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError
from moeify.pruning.config import PruneConfig
from moeify.pruning.merging import align, merged_pieces, nearest
from moeify.pruning.opening import open_prunable
from moeify.pruning.plan import plan_prune
from moeify.pruning.prune import prune
from moeify.routing.loading import load_model
from tests.pruning.tiny_mixtures import EXPERTS, batch, save


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def shuffled_copies(model_type: str, folder: Path) -> torch.nn.Module:
    """A mixture whose experts are expert 0 with its neurons in other orders."""
    model = save(model_type, folder)
    tensors = weights(folder)
    mixture = open_prunable(Checkpoint.open(folder))
    draw = torch.Generator().manual_seed(0)
    for layer in mixture.moe_layers:
        prefix = mixture.layer_prefix(layer)
        for expert in range(1, EXPERTS):
            order = None
            for spec in mixture.layout.experts:
                name, first = (prefix + spec.name.format(expert=e) for e in (expert, 0))
                source = tensors[first][0] if spec.fused else tensors[first]
                axis = spec.neuron_axis
                if axis is not None:
                    joined = len(spec.roles)
                    count = source.shape[axis] // joined
                    order = torch.randperm(count, generator=draw) if order is None else order
                    index = (order[:, None] * joined + torch.arange(joined)).flatten()
                    if not spec.interleaved:
                        index = torch.cat([order + count * n for n in range(joined)])
                    source = source.index_select(axis, index)
                if spec.fused:
                    tensors[name][expert] = source
                else:
                    tensors[name] = source.contiguous()
    save_file(tensors, folder / "model.safetensors")
    return model


@pytest.mark.parametrize("model_type", ["bert_moe", "gpt2_moe", "mixtral", "gpt_oss", "granitemoe"])
def test_merging_shuffled_copies_changes_nothing(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aligned, an expert and its shuffled copy average to itself; unaligned they would not."""
    shuffled_copies(model_type, tmp_path / "moe")
    with torch.no_grad():
        wanted = load_model(tmp_path / "moe")(**batch()).logits
        report = prune(tmp_path / "moe", tmp_path / "out", keep=3, by="random", merge=True)
        found = load_model(tmp_path / "out")(**batch()).logits
    assert report.merged
    assert (found - wanted).abs().max() <= 1e-5
    monkeypatch.setattr("moeify.pruning.merging.align", lambda rows, _: np.arange(len(rows)))
    prune(tmp_path / "moe", tmp_path / "crude", keep=3, by="random", merge=True)
    with torch.no_grad():
        assert (load_model(tmp_path / "crude")(**batch()).logits - wanted).abs().max() > 1e-2


def test_weights_are_frequencies(tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    mixture = open_prunable(Checkpoint.open(tmp_path))
    kept = dict.fromkeys(mixture.moe_layers, (0, 1))
    frequency = {n: [3.0, 5.0, 1.0, 0.0, 2.0, 4.0, 6.0, 7.0] for n in kept}
    pieces = merged_pieces(mixture, kept, frequency)
    terms = [piece.terms for piece in pieces.values()]
    assert all(sum(weight for _, weight in row) == pytest.approx(1) for row in terms)
    plan_prune(mixture, kept, 10**9, pieces)
    taken = {
        int(part.tensor.name.split("experts.")[1].split(".")[0]): weight
        for (name, _), piece in pieces.items()
        if "layers.0." in name and "w1" in name
        for part, weight in piece.terms
    }
    assert taken.keys() == set(range(EXPERTS))
    for expert in (2, 3):  # the same neighbour or not, shares go as frequencies
        assert (taken[expert] == 0) == (frequency[0][expert] == 0)


def test_nearest_goes_by_centred_router_rows() -> None:
    common = np.array([100.0, 0, 0], np.float32)
    rows = np.array([[0, 1, 0], [0, 0, 1], [0, 1, 0.1], [0, 0, 2], [0, -1, -1]], np.float32)
    assert nearest(rows + common, (0, 1, 4), (0, 1, 4)) == {0: (2,), 1: (3,)}
    assert nearest(rows + common, (0, 1, 4), (0,)) == {0: (2, 3)}
    assert nearest(rows, (0, 1), ()) == {}


def test_alignment_finds_a_permutation() -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((50, 20)).astype(np.float32)
    order = draw.permutation(50)
    noisy = rows[order] + 0.05 * draw.standard_normal((50, 20)).astype(np.float32)
    found = align(rows, noisy)
    assert np.array_equal(order[found], np.arange(50))
    assert np.array_equal(align(np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32)), range(4))
    assert sorted(align(rows[:9], draw.standard_normal((9, 20)).astype(np.float32))) == [*range(9)]


def greedy(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The most similar pair first, from the whole table."""
    similar = reference @ other.T + np.float32(1e-6) * np.eye(len(reference), dtype=np.float32)
    order = np.empty(len(reference), np.int64)
    for _ in range(len(reference)):
        row, column = np.unravel_index(similar.argmax(), similar.shape)
        order[row] = column
        similar[row], similar[:, column] = -np.inf, -np.inf
    return order


@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_alignment_in_blocks_is_greedy(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeify.pruning.merging._ROWS", rows)
    draw = np.random.default_rng(1)
    one, two = draw.standard_normal((2, 300, 16)).astype(np.float32)
    assert np.array_equal(align(one, two), greedy(one, two))


def test_alignment_of_wide_experts_holds_no_table() -> None:
    """12,000 neurons: their table of similarities would take 576 MB."""
    draw = np.random.default_rng(2)
    neurons = draw.standard_normal((12_000, 8)).astype(np.float32)
    neurons /= np.linalg.norm(neurons, axis=1, keepdims=True)
    order = draw.permutation(len(neurons))
    tracemalloc.start()
    found = align(neurons, neurons[order])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(order[found], np.arange(len(neurons)))
    assert peak < 150 << 20


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="merging replaces the weights"):
        PruneConfig(keep=2, by="aimer", merge=True, rescale=True, dataset="x.txt")
    save("bert_moe", tmp_path / "m")
    tensors = weights(tmp_path / "m")
    name = "bert.encoder.layer.0.intermediate.experts.up_proj"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match="quantised experts cannot be merged"):
        prune(tmp_path / "m", tmp_path / "out", keep=4, by="random", merge=True)
