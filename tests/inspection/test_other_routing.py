"""Losses if tokens were routed by other rules, and with a capacity, beside the routers'."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.cli.app import app
from moeify.errors import ConfigError
from moeify.families.mixture import open_mixture
from moeify.inspection.config import InspectConfig
from moeify.routing.capacity import Capacity
from moeify.routing.data import blocks_for
from moeify.routing.examples import Examples
from moeify.routing.held_out import Reading, read_held_out
from moeify.routing.loaded import mixtures_in
from moeify.routing.loading import load_model
from moeify.routing.passes import WholeModel
from moeify.routing.rules import ROUTING_RULES
from moeify.routing.statistics import RoutingStatistics
from tests.tiny import save_tiny
from tests.warming.mixtures import DEMO, demo_mixture, with_tokenizer

TEXT = {"dataset": str(DEMO / "text.jsonl"), "max_tokens": 1500, "seq_len": 50, "batch": 4}
ALL: dict[str, Any] = {"routing": tuple(ROUTING_RULES), "capacity_factor": 1.25}
MADE: dict[str, dict[str, Any]] = {
    "copies": {"num_experts": 4, "top_k": 2},
    "slices": {"num_experts": 3, "top_k": 1, "slices": 4},
    "copies in slices": {"num_experts": 4, "top_k": 2, "slices": 4, "shared": 1, "arch": "glm4_moe"},
}


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A mixture of equal experts, and one of experts that differ."""
    folder, options = tmp_path_factory.mktemp("made"), MADE[request.param]
    base = DEMO / "gpt2"
    if "arch" in options:
        base = with_tokenizer(save_tiny(folder / "dense", "qwen3", vocab_size=2048))
    for name, noise in (("equal", 0.0), ("differ", 0.3)):
        moeify.upcycle(base, folder / name, noise=noise, router="normal", **options)
    return {name: folder / name for name in ("equal", "differ")}


def test_of_equal_experts_every_rule_has_the_loss_of_the_routers(made: dict[str, Path]) -> None:
    found = moeify.inspect(made["equal"], **TEXT, **ALL).routing["otherwise"]
    assert list(found["rules"]) == list(ROUTING_RULES)
    for name, rule in found["rules"].items():
        assert rule["loss"] == pytest.approx(found["learned"], rel=1e-5), name
    assert 0 < found["capacity"]["assignments_dropped"] < 0.5
    wide = moeify.inspect(made["equal"], **TEXT, capacity_factor=64.0).routing["otherwise"]
    assert (wide["rules"], wide["capacity"]["tokens_dropped"]) == ({}, 0)
    assert wide["capacity"]["loss"] == pytest.approx(found["learned"], rel=1e-5)


def test_layer_by_layer_says_the_same_of_experts_that_differ(made: dict[str, Path]) -> None:
    whole, by_layer = (
        moeify.inspect(made["differ"], **TEXT, **ALL, low_memory=low).routing["otherwise"] for low in (False, True)
    )
    losses = [whole["learned"], whole["capacity"]["loss"], *(rule["loss"] for rule in whole["rules"].values())]
    assert len(set(losses)) == len(losses), "each of its own"
    assert by_layer["rules"]["static"]["expert"] == whole["rules"]["static"]["expert"]
    again = [by_layer["learned"], by_layer["capacity"]["loss"], *(rule["loss"] for rule in by_layer["rules"].values())]
    assert again == pytest.approx(losses, rel=1e-5)
    assert by_layer["capacity"]["tokens_dropped"] == pytest.approx(whole["capacity"]["tokens_dropped"], abs=2e-3)


def test_rules_send_tokens_where_they_say(made: dict[str, Path]) -> None:
    mixture = open_mixture(Checkpoint.open(made["differ"]))
    blocks, tokenizer = blocks_for(mixture.checkpoint, InspectConfig(**TEXT).data, 1500)
    seen = {name: RoutingStatistics(0) for name in ("learned", *ROUTING_RULES)}
    visits: dict[int, set[tuple[int, ...]]] = {}

    def hashed(tokens: Any) -> None:
        seen["hash"](tokens)
        if tokens.layer == 0:
            for token, experts in zip(tokens.token_ids.tolist(), tokens.experts.tolist(), strict=True):
                visits.setdefault(token, set()).add(tuple(sorted(experts)))

    observers = {**seen, "hash": hashed}
    names = [name for name in seen if name == "learned" or ROUTING_RULES[name].start]
    readings = [
        Reading(route=None if name == "learned" else ROUTING_RULES[name].start(0), observe=observers[name])
        for name in names
    ]
    passes = WholeModel(load_model(made["differ"]), head=True)
    read_held_out(passes, mixture.layout, Examples(blocks, "causal", tokenizer, 0), readings, batch_size=4)
    for layer in mixture.moe_layers:
        uneven = {name: seen[name].layers[layer].max_violation for name in names}
        counts = seen["round-robin"].layers[layer].tokens_per_expert
        assert max(counts) - min(counts) <= 1
        assert uneven["least-loaded"] < min(0.35, uneven["learned"] + 0.01)
        assert uneven["random"] < 0.3
        for name in names:  # whole copies, as many of each slice
            load = np.array(seen[name].layers[layer].tokens_per_expert)
            assert all(len({load[e] for e in unit}) == 1 for unit in mixture.numbering.units)
            assert len({load[list(mixture.numbering.of_slice(n))].sum() for n in range(mixture.slices)}) == 1
    assert all(len(sets) == 1 for sets in visits.values()), "a token always goes to the same experts"
    assert len(set().union(*visits.values())) > 1


@torch.no_grad()
def test_room_is_rounded_up_from_the_exact_product() -> None:
    layer: Any = SimpleNamespace(slices=1, number=0)
    capacity, every = Capacity(1.1), torch.ones(100, 1)
    capacity.tell(torch.zeros(1, 100), torch.ones(1, 100))
    weights, _ = capacity(layer, torch.zeros(100, 5), every, torch.zeros(100, 1, dtype=torch.long))
    assert weights.sum() == 22


def test_capacity_leaves_out_what_counting_by_hand_does(made: dict[str, Path]) -> None:
    model = load_model(made["differ"])
    (mixture,) = mixtures_in(model).values()
    capacity, before, after = Capacity(1.0), {}, {}
    ids = torch.arange(4, 64).reshape(3, 20)
    mask = torch.ones_like(ids)
    mask[2, 13:] = 0
    capacity.tell(ids, mask)
    with mixture.watched(lambda r: before.setdefault(r.layer.number, r)):
        model(input_ids=ids, attention_mask=mask)
    number = min(before)
    with mixture.rerouted(capacity), mixture.watched(lambda r: after.setdefault(r.layer.number, r)):
        model(input_ids=ids, attention_mask=mask)
    experts, weights = before[number].experts, before[number].weights
    real = mask.flatten().bool().tolist()
    slices, total = before[number].layer.slices, before[number].logits.shape[-1]
    room = math.ceil(sum(real) * experts.shape[1] / total)
    counts, kept = [0] * total, torch.zeros(experts.shape, dtype=torch.bool)
    for column in range(experts.shape[1]):
        for row in range(len(experts)):
            if real[row]:
                kept[row, column] = counts[experts[row, column]] < room
                counts[experts[row, column]] += 1
    wanted = (weights * kept).unflatten(-1, (slices, -1))
    sums = weights.unflatten(-1, (slices, -1)).sum(-1, keepdim=True)
    wanted = torch.nan_to_num(wanted / wanted.sum(-1, keepdim=True) * sums).flatten(-2)
    found = torch.zeros_like(wanted)
    where = (after[number].experts.unsqueeze(-1) == experts.unsqueeze(-2)).long().argmax(-1)
    found.scatter_(1, where, after[number].weights)
    torch.testing.assert_close(found[real], wanted[real])
    tokens, assignments = capacity.dropped()[number]
    assert assignments == pytest.approx(float((~kept[real]).float().mean()))
    lost = (~kept.unflatten(-1, (slices, -1)).any(-1)).any(-1)[real]
    assert tokens == pytest.approx(float(lost.float().mean()))
    assert 0 < assignments < 0.6


def test_null_experts_need_no_room_and_no_rule_sends_tokens_there(tmp_path: Path) -> None:
    moeify.upcycle(DEMO / "gpt2", tmp_path / "moe", num_experts=4, top_k=2, null_experts=3, layers="1", noise=0.0)
    found = moeify.inspect(tmp_path / "moe", **TEXT, routing=tuple(ROUTING_RULES), capacity_factor=8.0)
    otherwise = found.routing["otherwise"]
    assert found.routing["experts_per_token"] < 2
    assert otherwise["capacity"]["assignments_dropped"] == 0
    for rule in (*otherwise["rules"].values(), otherwise["capacity"]):
        assert rule["loss"] == pytest.approx(otherwise["learned"], rel=1e-6)


def test_the_command_says_it_in_a_table_a_page_and_a_document(tmp_path: Path) -> None:
    moe = demo_mixture(tmp_path / "moe", layers="1", noise=0.3)
    text = ["--dataset", TEXT["dataset"], "--max-tokens", "600", "--seq-len", "50"]
    asked = ["--routing", "hash,static", "--capacity-factor", "1", "--html", str(tmp_path / "page.html")]
    shown = CliRunner().invoke(app, ["inspect", str(moe), *text, *asked])
    assert "loss if tokens were routed otherwise" in shown.stdout
    assert "capacity 1:" in shown.stdout
    assert 'id="otherwise"' in (tmp_path / "page.html").read_text()
    found = json.loads(CliRunner().invoke(app, ["inspect", str(moe), *text, *asked, "--json"]).stdout)["routing"][
        "otherwise"
    ]
    assert list(found["rules"]) == ["hash", "static"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"routing": ("fair",), **TEXT}, "there is no rule 'fair' to route by"),
        ({"routing": ("hash",)}, "--routing needs text to route"),
        ({"capacity_factor": 1.0}, "--capacity-factor needs text to route"),
        ({"capacity_factor": 0.0, **TEXT}, "must be positive, not 0"),
        ({"routing": ("hash",), **TEXT}, "'BertMoeModel' has no language-model head"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert", "BertModel", vocab_size=2048)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2)
    with pytest.raises(ConfigError, match=told):
        moeify.inspect(with_tokenizer(tmp_path / "moe"), **options)
