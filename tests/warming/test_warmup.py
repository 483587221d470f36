"""The whole command on real and tiny checkpoints: what changes on disk and what is reported."""

import json
import os

import pytest

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import (
    ConfigError,
    DatasetError,
    MoeifyError,
    OutputError,
    TrainingError,
    UnsupportedModelError,
)
from moeify.upcycling.attach import attach
from moeify.upcycling.upcycle import upcycle
from moeify.warming.warmup import warmup
from tests.warming.mixtures import DEMO, FAST, corpus, demo_mixture, hashes, with_tokenizer


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
    assert {t for p in new for t, s in Checkpoint.open(output).tensors.items() if s.path == p} == (
        changed
    )


def test_across_file_systems_files_are_copied_byte_by_byte(mixture, data, elsewhere):
    with pytest.raises(OSError, match="link"):
        os.link(next(mixture.glob("*.safetensors")), elsewhere / "link")
    report = run(mixture, elsewhere / "warm", data)
    shards = sorted(path.name for path in mixture.glob("*.safetensors"))
    same = [
        n for n in shards if (mixture / n).read_bytes() == (elsewhere / "warm" / n).read_bytes()
    ]
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
    assert report.reservoir_bytes == 2 * 128 * 4 * report.fit_tokens
    json.dumps(report.to_dict(), allow_nan=False)


def test_record_card_and_plot(fitted, data):
    output, report = fitted
    record = json.loads((output / "moeify.json").read_text())
    assert [step["command"] for step in record["steps"]] == ["upcycle", "warmup"]
    step = record["steps"][-1]
    assert step["options"]["dataset"] == data.name, "never a path of this machine"
    assert step["results"]["max_violation_after"] == report.max_violation_after
    card = (output / "README.md").read_text()
    assert "max violation before" in card.replace("_", " ")
    assert "eval loss after" in card.replace("_", " ")
    assert (output.parent / "load.svg").read_text().count("<image") >= 2


def test_zero_routers_are_fitted_as_well_and_identical_experts_are_named(tmp_path, data):
    moe = demo_mixture(tmp_path / "moe", noise=0.0, router="zeros")
    report = run(moe, tmp_path / "warm", data, steps=3, dense=str(DEMO / "gpt2"))
    assert report.headroom.experts_identical
    assert any("routing cannot change the loss" in note for note in report.notes)
    assert report.max_violation_after < 0.45 < report.max_violation_before
    assert report.eval_loss_after == pytest.approx(report.eval_loss_dense, rel=1e-5)
    assert all(point["loss"] < 1 for point in report.curve), "the task takes no part"


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
    assert min(last.own_expert_fraction.values()) > 0.4
    assert last.nmi_after > 0.05
    assert max(last.enrichment) > 2


def test_whole_sequences_visit_their_domains_experts(mixture, data, tmp_path):
    attach(mixture, tmp_path / "moe", route_by="sequence")
    shares = []
    for folder, steps in ((mixture, 0), (tmp_path / "moe", 2)):
        report = run(
            folder, tmp_path / f"{steps}-warm", data, domain_column="domain", fit="domains",
            fit_tokens=8192, steps=steps,
        )  # fmt: skip
        shares.append([min(layer.own_expert_fraction.values()) for layer in report.layers])
    assert report.steps == len(report.curve) == 2
    assert json.loads((tmp_path / "2-warm" / "config.json").read_text())["route_by"] == "sequence"
    assert all(whole > single for single, whole in zip(*shares, strict=True))


@pytest.mark.parametrize(
    ("family", "dtype", "unit"),
    [
        ("qwen2", "bfloat16", "token"),
        ("qwen3", "float32", "token"),
        ("bert", "float32", "token"),
        ("bert", "float32", "sequence"),
    ],
)
def test_other_families_train_too(family, dtype, unit, data, tmp_path):
    from tests.tiny import save_tiny

    dense = save_tiny(tmp_path / "dense", family, dtype=dtype, **_vocabulary(family))
    with_tokenizer(dense)
    if family == "bert":
        _add_mask_token(dense)
    upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.3, route_by=unit)
    report = run(tmp_path / "moe", tmp_path / "warm", data, steps=2, dense=str(dense))
    changed = _changed(tmp_path / "moe", tmp_path / "warm")
    assert changed
    assert all(name.endswith(("gate.weight", "router.weight")) for name in changed)
    assert report.loss == ("masked" if family == "bert" else "causal")
    assert report.steps == 2
    assert report.eval_loss_dense is not None
    tensors = Checkpoint.open(tmp_path / "warm").tensors
    assert {tensors[name].dtype for name in changed} == {{"bfloat16": "BF16"}.get(dtype, "F32")}


def test_training_experts_too_writes_them_in_the_checkpoints_own_form(data, tmp_path):
    from tests.tiny import save_tiny

    dense = with_tokenizer(save_tiny(tmp_path / "dense", "qwen3", **_vocabulary("qwen3")))
    upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.3)
    run(tmp_path / "moe", tmp_path / "warm", data, steps=2, train="moe")
    changed = _changed(tmp_path / "moe", tmp_path / "warm")
    kinds = {".experts." in name or name.endswith("gate.weight") for name in changed}
    assert kinds == {True}
    assert any(".experts.3.down_proj" in name for name in changed)
    from moeify.routing.loading import load_model

    load_model(tmp_path / "warm")


def test_nan_stops_with_the_last_good_routers(mixture, data, tmp_path):
    import torch

    from moeify.routing.loading import load_model

    with pytest.raises(TrainingError, match="loss became nan") as caught:
        run(mixture, tmp_path / "warm", data, steps=5, learning_rate=3e38, fit="kmeans")
    assert "learning-rate" in caught.value.hint
    model = load_model(tmp_path / "warm")
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text_column": "body"}, DatasetError, "no column 'body'"),
        ({"domain_column": "kind"}, DatasetError, "no column 'kind'"),
        ({"seq_len": 500}, ConfigError, "128 positions"),
        ({"loss": "masked"}, ConfigError, "no head for the masked loss"),
        ({"resume": True, "steps": 2}, ConfigError, "no interrupted run"),
        ({"device": "tpu"}, ConfigError, "device 'tpu'"),
    ],
)
def test_bad_input_leaves_nothing_behind(mixture, data, tmp_path, options, error, message):
    with pytest.raises(error, match=message) as caught:
        run(mixture, tmp_path / "warm", data, **options)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_domains_that_cannot_be_followed(mixture, tmp_path):
    path = tmp_path / "rows.jsonl"
    for names, message in ((["a"], "has one value"), ("abcdef", "6 domains for 4 experts")):
        rows = [{"text": "word " * 60, "kind": name} for name in names]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(DatasetError, match=message):
            run(mixture, tmp_path / "warm", path, domain_column="kind")


def test_dense_checkpoints_existing_outputs_and_missing_tokenizers(mixture, data, tmp_path):
    with pytest.raises(UnsupportedModelError) as caught:
        run(DEMO / "gpt2", tmp_path / "warm", data)
    assert "upcycle" in caught.value.hint
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        run(mixture, tmp_path / "there", data)
    bare = demo_mixture(tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(MoeifyError, match="no tokenizer"):
        run(bare, tmp_path / "warm", data)


def _vocabulary(family: str) -> dict[str, int]:
    return {"vocab_size": 2049 if family == "bert" else 2048}


def _add_mask_token(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "gpt2")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)


def _changed(before, after):
    first, second = hashes(before), hashes(after)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}
