"""Routers of slices are measured, fitted and trained each by itself."""

from pathlib import Path

import numpy as np
import pytest

import moeify
from moeify.warming.warmup import warmup
from tests.tiny import state
from tests.warming.mixtures import FAST, changed, corpus, demo_mixture

SLICES = {"slices": 4, "num_experts": 2, "top_k": 1}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    corpus(folder)
    return demo_mixture(folder / "moe", **SLICES, noise=0.3)


def test_a_fit_makes_every_slice_even(mixture: Path, tmp_path: Path) -> None:
    text = str(mixture.parent / "corpus.jsonl")
    report = warmup(mixture, tmp_path / "out", dataset=text, fit="kmeans", steps=0, **FAST)
    assert not report.headroom.experts_identical
    for layer in report.layers:
        load = np.array(layer.load_after).reshape(4, 2)
        np.testing.assert_allclose(load.sum(1), 0.25)
        assert load.min() > 0.05
    rows = next(tensor for name, tensor in state(tmp_path / "out").items() if name.endswith("router.weight"))
    rows = rows.reshape(4, 2, -1)
    assert not np.allclose(rows[0], rows[1])  # draws of its own: combinations of slices are more than copies


def test_domains_take_an_expert_of_every_slice(mixture: Path, tmp_path: Path) -> None:
    text = str(mixture.parent / "corpus.jsonl")
    named = {"dataset": text, "domain_column": "domain"}
    warmup(mixture, tmp_path / "out", fit="domains", steps=0, **named, **FAST)
    seen = moeify.inspect(tmp_path / "out", max_tokens=4000, seq_len=32, **named)
    for layer in seen.layers:
        own = np.array(layer.routing["domains"]["own_domain"]).reshape(4, 2)
        assert (own == own[0]).all()
        assert sorted(own[0]) == [0, 1]
        assert 0 < layer.routing["entropy"] < 1


def test_training_moves_every_router(mixture: Path, tmp_path: Path) -> None:
    text = str(mixture.parent / "corpus.jsonl")
    report = warmup(mixture, tmp_path / "out", dataset=text, fit="none", steps=2, z_coef=0.01, **FAST)
    assert report.steps == 2
    names = changed(mixture, tmp_path / "out")
    assert names
    assert all("router" in name for name in names)
