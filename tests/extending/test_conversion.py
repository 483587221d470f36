"""From one file outside the package, Seed-OSS checkpoints become GraniteMoE mixtures in every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError, UnsupportedModelError
from moeify.families import registry
from moeify.families.registry import register_conversion, register_mixture
from moeify.hub.listing import local_files
from moeify.hub.plan import plan_push
from moeify.routing.loading import load_model
from tests.extending.decoders import DEMO, save_seed_oss, weights
from tests.extending.documented import example, installed, run
from tests.families.test_contract import load_strictly

HEADS = ("Model", "ForCausalLM")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "options", [{"tie_word_embeddings": True}, {"head_dim": 24, "rope_parameters": LLAMA3}], ids=["tied", "llama3"]
)
def test_every_head_is_exact_and_comes_back(
    seed_oss: None, tmp_path: Path, head: str, options: dict[str, Any]
) -> None:
    dense = save_seed_oss(tmp_path / "dense", head, **options)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, noise=0.0)
    assert (report.family, report.model_type) == ("seed_oss", "granitemoe")
    assert type(load_strictly(tmp_path / "moe")).__name__ == f"GraniteMoe{head}"
    compared = moeify.verify(dense, tmp_path / "moe")
    assert compared.relative_diff <= 1e-6 and compared.top1_agreement == 1
    assert moeify.inspect(tmp_path / "moe").problems == []
    back = moeify.prune(tmp_path / "moe", tmp_path / "back", keep=1, by="random", dense=True)
    assert back.num_experts == 1
    before, after = weights(dense), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert moeify.verify(dense, tmp_path / "back").bit_exact


def test_every_command_works_on_it(seed_oss: None, tmp_path: Path) -> None:
    dense, moe = save_seed_oss(tmp_path / "dense"), tmp_path / "moe"
    said = moeify.inspect(dense)
    assert said.problems == [] and said.upcycled is not None
    assert said.upcycled.model_type == "granitemoe"
    report = moeify.upcycle(dense, moe, num_experts=4, noise=0.05)
    assert report.params_total == load_model(moe).num_parameters()
    moeify.attach(moe, tmp_path / "attached", router="normal", top_k=1)
    assert moeify.inspect(tmp_path / "attached").top_k == 1
    text = {"dataset": DEMO / "text.jsonl", "seq_len": 32}
    warmed = moeify.warmup(
        moe, tmp_path / "warmed", steps=2, batch=2, fit_tokens=512, eval_tokens=512, device="cpu", **text
    )
    assert warmed.steps == 2
    assert (
        weights(moe)["model.layers.0.block_sparse_moe.router.layer.weight"]
        .ne(weights(tmp_path / "warmed")["model.layers.0.block_sparse_moe.router.layer.weight"])
        .any()
    )
    moeify.extract(tmp_path / "warmed", tmp_path / "expert", expert=2)
    assert type(load_model(tmp_path / "expert")).__name__ == "SeedOssForCausalLM"
    assert moeify.inspect(moe, reference=dense, weights=True).problems == []
    added = moeify.add_experts(moe, tmp_path / "added", experts=(str(dense),))
    assert added.num_experts == 5
    local, left = local_files(Checkpoint.open(tmp_path / "warmed"), "me/seed-moe")
    plan = plan_push("me/seed-moe", "main", local, None, left, None)
    assert {file.name for file in plan.uploads} >= {"config.json", "README.md"}
    assert any(file.name.endswith(".safetensors") for file in plan.uploads)
    card = (tmp_path / "warmed" / "README.md").read_text()
    assert "- seed_oss\n" in card


def test_what_the_class_lacks_is_refused(seed_oss: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no way to say that layers 0, 2 stay dense"):
        moeify.upcycle(save_seed_oss(tmp_path / "a"), tmp_path / "moe", layers="odd")
    for head in ("ForSequenceClassification", "ForQuestionAnswering"):
        with pytest.raises(CheckpointError, match=f"become a GraniteMoe{head}, which does not exist"):
            moeify.upcycle(save_seed_oss(tmp_path / head, head), tmp_path / "moe")
    bare = save_seed_oss(tmp_path / "b", attention_bias=False)
    with pytest.raises(ConfigError, match="only a Seed-OSS with biases"):
        moeify.upcycle(bare, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


def test_a_second_conversion_is_named_and_going_back_never_guesses(seed_oss: None, tmp_path: Path) -> None:
    first = registry.CONVERSIONS["seed_oss"][0]
    register_mixture(replace(first.moe, model_type="granitemoe_two"))
    register_conversion(replace(first, moe=registry.MOE_LAYOUTS["granitemoe_two"]))
    register_conversion(replace(first, dense=replace(first.dense, model_type="seed_two")))
    dense, moe = save_seed_oss(tmp_path / "dense"), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=2, arch="granitemoe_two", noise=0.0)
    assert json.loads((moe / "config.json").read_text())["model_type"] == "granitemoe_two"
    with pytest.raises(ConfigError, match="does not become 'olmoe', but granitemoe, granitemoe_two"):
        moeify.upcycle(dense, tmp_path / "other", arch="olmoe")
    moeify.upcycle(dense, tmp_path / "default", num_experts=2, noise=0.0)
    moeify.extract(tmp_path / "default", tmp_path / "back", expert=0)  # moeify.json says so
    assert moeify.inspect(tmp_path / "back").model_type == "seed_oss"
    (tmp_path / "default" / "moeify.json").unlink()
    with pytest.raises(CheckpointError, match=r"made of .*seed_oss or seed_two") as caught:
        moeify.extract(tmp_path / "default", tmp_path / "unknown", expert=0)
    assert '"dense_model_type"' in str(caught.value.hint)
    config = tmp_path / "default" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dense_model_type": "seed_oss"}))
    moeify.extract(tmp_path / "default", tmp_path / "said", expert=0)
    found = json.loads((tmp_path / "said" / "config.json").read_text())
    assert found["model_type"] == "seed_oss" and "dense_model_type" not in found


def test_what_cannot_be_registered_says_why(seed_oss: None) -> None:
    conversion = registry.CONVERSIONS["seed_oss"][0]
    with pytest.raises(ConfigError, match="from 'seed_oss' to 'granitemoe' is there already"):
        register_conversion(conversion)
    with pytest.raises(ConfigError, match="there already with another layout"):
        register_conversion(replace(conversion, dense=replace(conversion.dense, class_prefix="X")))
    with pytest.raises(ConfigError, match="'granitemoe' is there already"):
        register_mixture(conversion.moe)
    with pytest.raises(ConfigError, match="'new' is not registered") as caught:
        register_conversion(replace(conversion, moe=replace(conversion.moe, model_type="new")))
    assert "register_mixture" in str(caught.value.hint)
    plain = replace(conversion.dense, model_type="plain", ffn=conversion.dense.ffn[1:])
    with pytest.raises(ConfigError, match="have a gate, which no part of the FFN of 'plain'"):
        register_conversion(replace(conversion, dense=plain))
    interleaved = registry.MOE_LAYOUTS["gpt_oss"]
    with pytest.raises(ConfigError, match="in another order than the FFN of 'seed_oss'"):
        register_conversion(replace(conversion, moe=interleaved))


def test_every_conversion_of_the_package_could_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in list(registry.CONVERSIONS.items()):
        monkeypatch.setitem(registry.CONVERSIONS._held, name, ())
        for conversion in known:
            register_conversion(conversion)
        assert registry.CONVERSIONS[name] == known


def test_a_dense_type_that_is_recorded_and_unknown_is_said(seed_oss: None, tmp_path: Path) -> None:
    dense, moe = save_seed_oss(tmp_path / "dense"), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=2, noise=0.0)
    record = moe / "moeify.json"
    record.write_text(record.read_text().replace('"dense_model_type": "seed_oss"', '"dense_model_type": "yi"'))
    with pytest.raises(CheckpointError, match="was made of yi, and no conversion to that is known"):
        moeify.extract(moe, tmp_path / "back", expert=0)


def test_before_it_is_registered_the_type_is_unknown(clean: None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'seed_oss' is not supported"):
        moeify.upcycle(save_seed_oss(tmp_path / "dense"), tmp_path / "moe")


@pytest.mark.parametrize("name", ["../qwen2", "qwen2.x", "__init__", "os", "", "catalogue"])
def test_a_name_from_config_json_is_never_imported_as_a_path(name: str) -> None:
    for catalogue in (registry.DENSE_LAYOUTS, registry.MOE_LAYOUTS, registry.CONVERSIONS):
        assert name not in catalogue
        assert catalogue.get(name) is None


def test_the_command_line_finds_it_by_its_entry_point(tmp_path: Path) -> None:
    place = installed(tmp_path / "site", example("A model type"), "seed_oss_to_granitemoe")
    save_seed_oss(tmp_path / "dense")
    done = run(place, "upcycle", "dense", "moe", "--arch", "granitemoe", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_type"] == "granitemoe"
    assert run(place, "inspect", "moe", cwd=tmp_path).returncode == 0
