"""A balance loss from outside the package is one file: trained with, shown in the help."""

import json
from pathlib import Path

import pytest

import moeify
from tests.extending.documented import example, installed, run

TEXT = Path(moeify.__file__).parent / "demo" / "text.jsonl"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return installed(tmp_path_factory.mktemp("site"), example("A balance loss"))


def test_warmup_trains_with_it(place, tmp_path):
    from tests.real.checkpoints import demo_gpt2

    moeify.upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4, top_k=2, router="normal")
    done = run(
        place,
        "warmup",
        "moe",
        "warm",
        "--dataset",
        TEXT,
        "--balance",
        "largest",
        "--steps",
        6,
        "--balance-coef",
        1,
        "--z-coef",
        0,
        "--fit",
        "none",
        "--batch",
        4,
        "--seq-len",
        32,
        "--learning-rate",
        0.001,
        "--fit-tokens",
        256,
        "--eval-tokens",
        1024,
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    curve = [step["balance"] for step in json.loads(done.stdout)["curve"]]
    assert min(curve) >= 1.0 and curve[-1] < curve[0]
    record = json.loads((tmp_path / "warm" / "moeify.json").read_text())
    assert record["steps"][-1]["options"]["balance"] == "largest"
    card = (tmp_path / "warm" / "README.md").read_text()
    assert "The measure MaxVio: Wang et al." in card and "The balance loss" not in card
    assert "kl|bias|none|largest" in run(place, "warmup", "--help", cwd=tmp_path).stdout
