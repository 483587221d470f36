"""Warm-up of mixtures whose experts have labels: each domain's tokens stay with their experts."""

from pathlib import Path

import moeify
from tests.upcycling.test_text_routers import own_share, place  # noqa: F401
from tests.warming.mixtures import DEMO, FAST

BASE = DEMO / "gpt2"
LABELS = {"prose": {0, 2}, "code": {1, 3}}  # by name, code would come first


def assembled(place: Path, folder: Path, **options: object) -> Path:  # noqa: F811
    moeify.upcycle(
        BASE, folder, experts_from=[place / "one", place / "two"], num_experts=4, labels=list(LABELS), **options
    )
    return folder


def warmed(place: Path, folder: Path, moe: Path, **options: object) -> moeify.WarmupReport:  # noqa: F811
    text = {"dataset": str(place / "corpus.jsonl"), "domain_column": "domain"}
    return moeify.warmup(moe, folder, **text, **{**FAST, "steps": 0, **options})


def test_a_fit_to_domains_follows_the_labels(place: Path, tmp_path: Path) -> None:  # noqa: F811
    moe = assembled(place, tmp_path / "moe")
    assert warmed(place, tmp_path / "warm", moe).fit == "domains"
    assert own_share(tmp_path / "warm", place, LABELS) > 0.8


def test_a_pruned_mixture_has_no_labels_left(place: Path, tmp_path: Path) -> None:  # noqa: F811
    moe = assembled(place, tmp_path / "moe")
    moeify.prune(moe, tmp_path / "small", keep=2, by="random")
    assert warmed(place, tmp_path / "warm", tmp_path / "small", fit="domains").fit == "domains"


def test_routers_from_text_are_not_fitted_again(place: Path, tmp_path: Path) -> None:  # noqa: F811
    text = {"router": "data", "dataset": str(place / "corpus.jsonl"), "domain_column": "domain"}
    moe = assembled(place, tmp_path / "moe", fit_tokens=2048, seq_len=64, **text)
    report = warmed(place, tmp_path / "warm", moe)
    assert report.fit == "none"
    assert report.eval_loss_after == report.eval_loss_before


def test_losses_stand_by_domain_and_those_that_got_worse_are_named(
    place: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = {"router": "data", "dataset": str(place / "corpus.jsonl"), "domain_column": "domain"}
    moe = assembled(place, tmp_path / "moe", fit_tokens=2048, seq_len=64, **text)
    report = warmed(place, tmp_path / "warm", moe, steps=3, learning_rate=0.05, train="moe")
    assert set(report.domain_losses) == set(LABELS)
    after = [loss.after for loss in report.domain_losses.values()]
    assert min(after) <= report.eval_loss_after <= max(after)
    losses = report.domain_losses.items()
    worse = {name for name, loss in losses if loss.after - loss.before > 2 * loss.change_error}
    said = {name for name in LABELS if any(f"of {name!r} got worse" in n for n in report.notes)}
    assert worse
    assert said == worse
