"""The whole command on real and tiny checkpoints: what changes on disk and what is reported."""

import json
import os

import pytest

from moeify.checkpoint.reader import Checkpoint
from moeify.pruning.prune import prune
from moeify.upcycling.attach import attach
from moeify.warming.warmup import warmup
from tests.warming.mixtures import DEMO, FAST, corpus, demo_mixture, hashes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe", noise=0.3)


def run(mixture, output, data, **options):
    return warmup(mixture, output, dataset=str(data), **{**FAST, "steps": 0, **options})


@pytest.fixture(scope="module")
def fitted(mixture, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("fitted") / "warm"
    plot = output.parent / "load.svg"
    report = run(mixture, output, data, domain_column="domain", fit="kmeans", plot=plot)
    return output, report


def test_only_routers_differ_and_every_other_file_is_the_same_file(mixture, fitted):
    output, report = fitted
    before, after = hashes(mixture), hashes(output)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"transformer.h.{n}.mlp.router.weight" for n in (0, 2)}
    linked = [p for p in output.glob("*.safetensors") if p.stat().st_nlink > 1]
    assert len(linked) == report.files_linked >= 1
    originals = {os.stat(path).st_ino for path in mixture.glob("*.safetensors")}
    assert {os.stat(path).st_ino for path in linked} <= originals
    assert report.bytes_written < 20_000
    new = [p for p in output.glob("*.safetensors") if p.stat().st_nlink == 1]
    guard = "transformer.h.0.mlp.c_fc.weight"  # keeps dense classes out, beside the routers
    tensors = Checkpoint.open(output).tensors
    assert {t for p in new for t, s in tensors.items() if s.path == p} == changed | {guard}


def test_across_file_systems_files_are_copied_byte_by_byte(mixture, data, elsewhere):
    with pytest.raises(OSError, match="link"):
        os.link(next(mixture.glob("*.safetensors")), elsewhere / "link")
    report = run(mixture, elsewhere / "warm", data)
    shards = sorted(path.name for path in mixture.glob("*.safetensors"))
    same = [n for n in shards if (mixture / n).read_bytes() == (elsewhere / "warm" / n).read_bytes()]
    assert (same, report.files_linked, report.files_copied) == (shards[:-1], 0, len(shards) - 1)
    sizes = {path.name: path.stat().st_size for path in (elsewhere / "warm").glob("*.safetensors")}
    assert report.bytes_written == sum(sizes.values())
    assert [path.name for path in elsewhere.iterdir()] == ["warm"]


def test_load_and_entropy_reach_what_is_asked(fitted):
    _, report = fitted
    assert report.max_violation_after < 0.3 < report.max_violation_before
    assert max(layer.max_violation_after for layer in report.layers) < 0.6
    assert 0.85 <= report.entropy_after <= 0.95
    assert report.dead_after == 0
    assert [layer.layer for layer in report.layers] == [0, 2]
    assert report.eval_loss_fitted == report.eval_loss_after
    assert report.reservoir_bytes == 128 * 4 * report.fit_tokens, "of one layer at a time"
    json.dumps(report.to_dict(), allow_nan=False)


def test_record_card_and_plot(fitted, data):
    output, report = fitted
    record = json.loads((output / "moeify.json").read_text())
    assert [step["command"] for step in record["steps"]] == ["upcycle", "warmup"]
    step = record["steps"][-1]
    assert step["options"]["dataset"] == data.name, "never a path of this machine"
    assert step["results"]["max_violation_after"] == report.max_violation_after
    assert step["results"]["data_fingerprint"] == report.data_fingerprint
    assert len(report.data_fingerprint) == 64
    card = (output / "README.md").read_text()
    both = (report.max_violation_before, report.max_violation_after)
    assert f"| max violation | {both[0]:.4g} | {both[1]:.4g} |" in card
    assert f"| eval loss | {report.eval_loss_before:.4g} | {report.eval_loss_after:.4g} |" in card
    load = (output.parent / "load.svg").read_text()
    assert load.count("<image") >= 2 and load.count("relative to the even share") == 2


def test_zero_routers_are_fitted_as_well_and_identical_experts_are_named(tmp_path, data):
    moe = demo_mixture(tmp_path / "moe", noise=0.0, router="zeros")
    report = run(moe, tmp_path / "warm", data, steps=3, reference=str(DEMO / "gpt2"))
    assert report.headroom.experts_identical
    assert any("routing cannot change the loss" in note for note in report.notes)
    assert report.max_violation_after < 0.45 < report.max_violation_before
    assert report.eval_loss_after == pytest.approx(report.eval_loss_dense, rel=1e-5)
    assert all(point["loss"] < 1 for point in report.curve), "the task takes no part"


def test_a_pruned_mixture_learns_from_the_one_it_was(fitted, data, tmp_path):
    output, _ = fitted
    prune(output, tmp_path / "few", keep=3, by="random")
    teacher = {"loss": "distill", "fit": "none", "reference": str(output)}
    report = run(tmp_path / "few", tmp_path / "warm", data, steps=24, train="moe", balance="none", **teacher)
    assert report.eval_loss_after < 0.9 * report.eval_loss_before
    for low_memory in (False, True):
        same = run(output, tmp_path / f"same-{low_memory}", data, low_memory=low_memory, **teacher)
        assert same.eval_loss_before < 1e-9 < report.eval_loss_after, "no distance to itself"


def test_trained_routers_are_left_alone(fitted, data, tmp_path):
    output, _ = fitted
    report = run(output, tmp_path / "again", data)
    assert report.fit == "none"
    assert hashes(output) == hashes(tmp_path / "again")
    forced = run(output, tmp_path / "forced", data, fit="kmeans", seed=5)
    assert forced.fit == "kmeans"
    assert hashes(output) != hashes(tmp_path / "forced")


def test_domains_get_experts_of_their_own(mixture, data, tmp_path):
    report = run(mixture, tmp_path / "warm", data, domain_column="domain", fit_tokens=8192)
    assert report.fit == "domains"
    last = report.layers[-1]
    assert last.nmi_after > 0.05
    assert max(last.enrichment) > 2
    two = demo_mixture(tmp_path / "two", num_experts=2, top_k=1)
    report = run(two, tmp_path / "warm-two", data, domain_column="domain", fit_tokens=8192)
    for layer in report.layers:  # with an expert each, nothing divides a domain's tokens
        assert min(layer.own_expert_fraction.values()) > 0.8


def test_whole_sequences_visit_their_domains_experts(mixture, data, tmp_path):
    attach(mixture, tmp_path / "moe", route_by="sequence")
    shares = []
    for folder, steps in ((mixture, 0), (tmp_path / "moe", 2)):
        report = run(
            folder,
            tmp_path / f"{steps}-warm",
            data,
            domain_column="domain",
            fit="domains",
            fit_tokens=8192,
            eval_tokens=2048,
            steps=steps,
        )
        shares.append([min(layer.own_expert_fraction.values()) for layer in report.layers])
    assert report.steps == len(report.curve) == 2
    assert json.loads((tmp_path / "2-warm" / "config.json").read_text())["route_by"] == "sequence"
    assert all(whole > single for single, whole in zip(*shares, strict=True))
