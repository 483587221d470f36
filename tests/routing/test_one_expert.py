"""A mixture of one expert has nothing to choose: its entropies are 1, and it runs everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest

import moeify
from tests.warming.mixtures import DEMO, FAST, demo_mixture


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    demo_mixture(folder / "moe", num_experts=2, top_k=1, noise=0.3)
    moeify.prune(folder / "moe", folder / "one", keep=1, by="random")
    return folder / "one"


def test_it_is_inspected(single: Path) -> None:
    text = {"dataset": str(DEMO / "text.jsonl"), "seq_len": 32, "max_tokens": 512}
    report = moeify.inspect(single, weights=True, **text).to_dict()
    assert report["routing"]["entropy"] == 1
    for layer in report["layers"]:
        if "routing" in layer:
            assert layer["routing"]["load_entropy"] == 1 and layer["routing"]["max_violation"] == 0
    assert not report["problems"]
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("options", [{"steps": 0, "fit": "kmeans"}, {"steps": 2}])
def test_it_is_warmed_up(single: Path, tmp_path: Path, options: dict[str, object]) -> None:
    text = {"dataset": str(DEMO / "text.jsonl"), **FAST}
    report = moeify.warmup(single, tmp_path / "out", **text, **options)
    assert report.entropy_after == 1
    assert np.isfinite(report.eval_loss_after)


def test_it_gets_another_router(single: Path, tmp_path: Path) -> None:
    report = moeify.attach(single, tmp_path / "out", seed=5)
    assert {outlook.entropy for outlook in report.after.values()} == {1.0}
