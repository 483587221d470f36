"""What docs/measured/evidence.md says of results that are complete, and of those that are not."""

import importlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("evidence_page")


def run(arm: str, seed: int, losses: tuple[float, ...], flops: int, **more: Any) -> dict[str, Any]:
    routing = {} if arm == "dense" else {"max_violation": 1.5, "nmi": 0.25, "dead": seed}
    points = [
        {"tokens": tokens, "loss": loss, "domains": {"english": loss}, **routing}
        for tokens, loss in zip((0, 100, 250, 500, 1000), losses, strict=True)
    ]
    sizes = {"active": 10, "parameters": 40, "flops_per_token": flops}
    kept = {"base": "gpt2", "arm": arm, "learning_rate": 1e-3, "seed": seed, "tokens": 1000, "part": "test"}
    return {**kept, **sizes, "points": points, "seconds": flops + seed, **more}


def table(said: str) -> dict[str, dict[str, str]]:
    """A Markdown table by its first column."""
    heads, _, *rows = [line[2:-2].split(" | ") for line in said.strip().splitlines()]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in rows}


def test_pairs_intervals_and_budgets(page: Any, tmp_path: Path) -> None:
    dense = [run("dense", seed, (5, 4, 3.5, 3.2, 3 + seed / 100), 6) for seed in range(3)]
    # A tenth of a nat below the dense run of its seed, at twice the cost.
    twice = [run("mixture", seed, (5, 4.2, 3.4, 3.1, 2.9 + seed / 100), 12) for seed in range(3)]
    late = [run("late", seed, (5, 4, 3.5, 3.2, 3.1), 6) for seed in range(2)]
    late += [run("others", seed, (5, 4, 3.5, 3.2, 3.2), 6) for seed in (3, 4, 5)]  # none that dense has as well
    dearer = [run("dearer", seed, (5, 4, 3.5, 3.2, 3.05 + seed / 100), 12) for seed in range(3)]
    half = [run("mixture", seed, (5, 4.2, 3.5, 3.2, 3.04 + seed / 100), 12, tokens=500) for seed in range(3)]
    short = [run("dense", seed, (5, 4, 3.5, 3.2, 3.1 + seed / 100), 6, tokens=500) for seed in range(3)]
    tuning = [
        run("dense", 100, (5, 4, 3.5, 3.2, loss), 6, part="tune", learning_rate=rate)
        for loss, rate in ((1, 1e-3), (2, 3e-3))
    ]
    (tmp_path / "decoders.json").write_text(
        json.dumps({"runs": dense + twice + late + dearer + half + short + tuning})
    )
    said = page.block("decoders-gpt2", tmp_path)
    assert said.startswith("1,000 tokens a run, 3 seeds.\n\n![") and "](decoders-gpt2.svg)" in said
    sizes, budgets, domains, routing, rates = map(table, said.split("\n\n")[2:])
    assert list(sizes) == ["mixture", "dense", "dearer", "late (2 seeds)", "others"]
    assert sizes["mixture"]["FLOPs"] == "2.00 x" and sizes["mixture"]["time"] == "1.86 x"  # 13 and 7 seconds
    assert sizes["dense"]["100 %"] == "3.0100 +- 0.0248"  # 4.303 * 0.01 / sqrt(3)
    assert budgets["mixture"]["1,000 tokens"] == "-0.1000 +- 0.0000"
    assert budgets["mixture"]["500 tokens"] == "-0.0600 +- 0.0000" and budgets["dearer"]["500 tokens"] == ""
    assert budgets["mixture"]["as many FLOPs"] == "+0.0400 +- 0.0000"  # of half as many tokens
    assert budgets["late (2 seeds)"]["as many FLOPs"] == budgets["late (2 seeds)"]["1,000 tokens"]
    assert budgets["dearer"]["as many FLOPs"] == ""
    assert budgets["late (2 seeds)"]["1,000 tokens"] == "+0.0950 +- 0.0635"
    assert list(budgets) == list(domains) == ["mixture", "dearer", "late (2 seeds)"]
    assert rates["dense"] == {"chosen by": "dense", "rate 0.001": "1.0000", "rate 0.003": "2.0000"}
    assert set(rates["mixture"].values()) == {"mixture", ""}
    assert routing["mixture"]["MaxVio at 10 %"] == "1.50" and routing["mixture"]["dead"] == "1.0"
    _, _, _, drawn = page.pictures(tmp_path)["decoders-gpt2"]
    assert [sorted(shown) for shown in drawn.values()] == [["mixture"], ["dearer", "mixture"], ["mixture"]]


def test_a_pruning_that_lacks_seeds_is_in_no_picture(page: Any, tmp_path: Path) -> None:
    losses = {"pruned": 4.0, "balance switch": 3.5, "balance none": 3.3}
    chance = {**losses, "pruned": 4.5}
    kept = {"base": "gpt2", "tokens": 1000, "part": "test", "unpruned": 3.0}
    kept["pruned"] = {"25%": {"reap": losses, "random": chance}}
    runs = [{**kept, "arm": arm, "seed": seed} for arm, count in (("whole", 2), ("late", 1)) for seed in range(count)]
    runs.append({**kept, "arm": "late", "seed": 1, "base": "qwen3"})
    (tmp_path / "recovery.json").write_text(json.dumps({"runs": runs}))
    said = page.block("recovery", tmp_path)
    assert "| late (1 seed) | 25% | reap |" in said and "| 50 %, 70 % |" in said and "| -0.5000 |" in said
    assert list(page.pictures(tmp_path)["recovery"][3]) == ["whole, -25%"]


def test_one_seed_is_in_no_picture(page: Any, tmp_path: Path) -> None:
    runs = [run(arm, 0, (5, 4, 3.5, 3.2, 3), 6) for arm in ("dense", "mixture")]
    (tmp_path / "decoders.json").write_text(json.dumps({"runs": runs}))
    said = page.block("decoders-gpt2", tmp_path)
    assert said.startswith("1,000 tokens a run, 1 seed.") and "| mixture |" in said and "![" not in said
    losses = {"pruned": 4.0, "balance switch": 3.5, "balance none": 3.3}
    kept = {"base": "gpt2", "arm": "whole", "seed": 0, "tokens": 1000, "part": "test", "unpruned": 3.0}
    kept["pruned"] = {"25%": {"reap": losses, "random": losses}}
    (tmp_path / "recovery.json").write_text(json.dumps({"runs": [kept]}))
    assert not any(any(drawn.values()) for *_, drawn in page.pictures(tmp_path).values())


def test_a_process_waits_for_the_runs_of_others_that_choose_a_rate(
    page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = importlib.import_module("evidence_runs")
    options = Namespace(work=tmp_path, results=tmp_path / "found.json", seeds=1, until=1.0)
    full, short = (runs.Run(base="gpt2", tokens=tokens, part=part) for tokens, part in ((9, "test"), (1, "tune")))
    made: list[Any] = []

    def make(run: Any) -> dict[str, Any]:
        made.append(run)
        return {"points": [{"loss": 1.0}]}

    study = runs.Study(options, full=full, short=short, arms=["dense"], rates=(0.1,), make=make)
    held, lock = study._next(tmp_path)  # as another process would

    def others_go_on(_: float) -> None:
        study.results.add(held, make(held))
        lock.release()

    monkeypatch.setattr(runs.time, "sleep", others_go_on)
    study.share()
    assert made == [held, runs.replace(full, arm="dense", learning_rate=0.1)]


def test_nothing_is_said_of_what_was_not_measured(page: Any, tmp_path: Path) -> None:
    for name in page.BLOCKS:
        assert page.block(name, tmp_path) == "Not measured yet.\n"
    assert not any(any(drawn.values()) for *_, drawn in page.pictures(tmp_path).values())
