"""Real experts a token are measured, and traded for null ones."""

from pathlib import Path

import pytest

import moeify
from moeify.errors import ConfigError
from moeify.warming.warmup import warmup
from tests.warming.mixtures import FAST, changed, corpus, demo_mixture


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nulls")
    corpus(folder)
    return demo_mixture(folder / "moe", null_experts=3, null_kinds=("zero", "copy", "constant"), noise=0.3)


@pytest.mark.parametrize("rate", [0.1, 0.95])
def test_a_rate_of_null_choices_is_come_near_to(rate: float, mixture: Path, tmp_path: Path) -> None:
    text = {"dataset": str(mixture.parent / "corpus.jsonl")}
    options = {"fit": "none", "steps": 40, "learning_rate": 3e-3, "null_rate": rate, "save_steps": 100}
    report = warmup(mixture, tmp_path / "out", **text, **options, **FAST)
    before, after = (2 - n for n in (report.experts_per_token_before, report.experts_per_token_after))
    assert 0.4 < before < 0.9
    assert abs(after - rate) < 0.5 * abs(before - rate)
    assert {"experts_per_token_before", "experts_per_token_after"} <= report.results().keys()
    names = changed(mixture, tmp_path / "out")
    assert sum(name.endswith("nulls.router.weight") for name in names) == 2
    assert all(name.endswith("router.weight") for name in names)
    seen = moeify.inspect(tmp_path / "out", max_tokens=2000, seq_len=32, **text)
    assert seen.routing is not None
    assert seen.routing["experts_per_token"] == pytest.approx(2 - after, abs=0.1)


def test_a_fit_leaves_them_and_training_reaches_all_of_theirs(mixture: Path, tmp_path: Path) -> None:
    text = {"dataset": str(mixture.parent / "corpus.jsonl")}
    warmup(mixture, tmp_path / "fitted", fit="kmeans", steps=0, **text, **FAST)
    assert not [name for name in changed(mixture, tmp_path / "fitted") if ".nulls." in name]
    warmup(mixture, tmp_path / "out", fit="none", steps=3, train="moe", **text, **FAST)
    reached = {name.rpartition(".nulls.")[2] for name in changed(mixture, tmp_path / "out") if ".nulls." in name}
    assert reached == {"router.weight", "scale", "constant"}


def test_a_rate_needs_null_experts(mixture: Path, tmp_path: Path) -> None:
    text = {"dataset": str(mixture.parent / "corpus.jsonl")}
    plain = demo_mixture(tmp_path / "moe")
    with pytest.raises(ConfigError, match="this mixture has no null experts"):
        warmup(plain, tmp_path / "out", null_rate=0.5, **text, **FAST)
    with pytest.raises(ConfigError, match=r"null-rate must be between 0 and 1, not 1\.5"):
        warmup(mixture, tmp_path / "out", null_rate=1.5, **text, **FAST)
    assert not (tmp_path / "out").exists()
