"""Neurons dealt to slices by the text that excites them: what fires together lies together, and nothing changes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import moeify
from moeify.errors import ConfigError
from moeify.upcycling.firing import dealt
from moeify.upcycling.verify import verify
from tests.tiny import save_tiny, state, tolerance
from tests.upcycling.specialists import ffn_tensors
from tests.warming.mixtures import corpus, with_tokenizer

TEXT = {"slice_by": "activation", "seq_len": 32, "fit_tokens": 2048}


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "distilbert"])
def test_it_computes_what_the_dense_model_computes(kind: str, low_memory: bool, tmp_path: Path) -> None:
    dense = with_tokenizer(save_tiny(tmp_path / "dense", kind, vocab_size=2048))
    text = TEXT | {"dataset": str(corpus(tmp_path)), "low_memory": low_memory}
    seen: list[int] = []
    with moeify.watch_progress(lambda stage: seen.append(stage.done) if stage.name == "watching neurons" else None):
        moeify.upcycle(dense, tmp_path / "moe", slices=4, shared=1, num_experts=2, top_k=1, noise=0, **text)
    assert seen == sorted(seen)
    assert seen[0] == 0 < seen[-1]
    assert verify(dense, tmp_path / "moe").relative_diff <= tolerance(kind)
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=1)
    assert verify(dense, tmp_path / "back").relative_diff <= tolerance(kind)
    wanted, found = ffn_tensors(dense), ffn_tensors(tmp_path / "back")
    moved = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    assert moved  # the same neurons in another order
    for name in moved:
        torch.testing.assert_close(found[name].flatten().sort()[0], wanted[name].flatten().sort()[0])
    step = json.loads((tmp_path / "moe" / "moeify.json").read_text())["steps"][0]["options"]
    assert (step["slice_by"], step["dataset"]) == ("activation", "corpus.jsonl")
    again = moeify.upcycle(dense, tmp_path / "again", slices=4, shared=1, num_experts=2, top_k=1, noise=0, **text)
    assert again.dry_run is False
    before, after = state(tmp_path / "moe"), state(tmp_path / "again")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ConfigError, match="does not know which neurons lie in which slice"):
        moeify.inspect(tmp_path / "moe", weights=True, reference=str(dense))


def test_neurons_that_fire_together_share_a_slice() -> None:
    draw = torch.Generator().manual_seed(0)
    causes = torch.rand(400, 4, generator=draw)  # of each group of neurons
    groups = torch.randperm(48, generator=draw) % 4
    activations = causes[:, groups] * (1 + torch.rand(48, generator=draw)) + 0.05 * torch.rand(400, 48, generator=draw)
    slices = dealt(activations, 4, seed=0)
    assert sorted(np.concatenate(slices).tolist()) == list(range(48))
    assert all(len(part) == 12 and len(set(groups[part].tolist())) == 1 for part in slices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slice_by": "activation", "slices": 4}, "--slice-by activation deals neurons to slices by text"),
        ({"slice_by": "activation", "dataset": "text.txt"}, "--slice-by activation deals neurons"),
        ({"slice_by": "order", "slices": 4, "dataset": "text.txt"}, "--dataset has no use with --router calibrated"),
        ({"slice_by": "size", "slices": 4}, "slice-by 'size' is unknown"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert")
    with pytest.raises(ConfigError, match=message):
        moeify.upcycle(dense, tmp_path / "moe", **{"num_experts": 2, "top_k": 1, **options})
    assert not (tmp_path / "moe").exists()
