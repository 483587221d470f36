"""Warm-up knows what experts were made of, and leaves routers alone that text has set."""

import json
from pathlib import Path

import pytest
import torch

import moeify
from tests.tiny import state
from tests.upcycling.specialists import specialist
from tests.upcycling.test_text_routers import own_share
from tests.warming.mixtures import DEMO, FAST, corpus

BASE = DEMO / "gpt2"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fitting")
    for number, name in enumerate(("one", "two")):
        specialist(BASE, folder / name, number, scale=0.1)
    texts: dict[str, list[str]] = {"prose": [], "code": []}
    for line in corpus(folder).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["domain"]].append(row["text"])
    held_out = {name: listed[-12:] for name, listed in texts.items()}
    (folder / "held_out.json").write_text(json.dumps(held_out), encoding="utf-8")
    return folder


def routers(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state(folder).items() if "router" in name}


@pytest.mark.parametrize("labels", [("prose", "code"), ("code", "prose")])
def test_domains_are_fitted_to_the_experts_of_their_label(
    place: Path, tmp_path: Path, labels: tuple[str, str]
) -> None:
    moeify.upcycle(
        BASE, tmp_path / "moe", experts_from=[place / "one", place / "two"], labels=labels
    )
    report = moeify.warmup(
        tmp_path / "moe", tmp_path / "warm", dataset=str(place / "corpus.jsonl"),
        domain_column="domain", steps=0, **FAST,
    )  # fmt: skip
    assert report.fit == "domains"
    owners = {label: {expert} for expert, label in enumerate(labels)}
    assert own_share(tmp_path / "warm", place, owners) > 0.8


def test_routers_that_text_has_set_are_left_alone(place: Path, tmp_path: Path) -> None:
    text = {"dataset": str(place / "corpus.jsonl"), "domain_column": "domain"}
    moeify.upcycle(
        BASE, tmp_path / "moe", experts_from=[place / "one", place / "two"],
        labels=("prose", "code"), router="data", fit_tokens=1024, seq_len=64, **text,
    )  # fmt: skip
    report = moeify.warmup(tmp_path / "moe", tmp_path / "warm", steps=0, **text, **FAST)
    assert report.fit == "none"
    before, after = routers(tmp_path / "moe"), routers(tmp_path / "warm")
    assert all(torch.equal(before[name], after[name]) for name in before)
