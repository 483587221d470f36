"""From dense to a mixture of copies and back: every tensor must come out bit for bit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError, UnsupportedModelError
from moeify.progress import watch_progress
from moeify.pruning.config import ExtractConfig
from moeify.pruning.extract import extract
from moeify.pruning.prune import prune
from moeify.upcycling.upcycle import upcycle
from tests.pruning.tiny_mixtures import save
from tests.tiny import FAMILIES_ONCE, layers_of, save_tiny


def save_dense(model_type: str, class_name: str, folder: Path) -> None:
    save_tiny(folder, model_type, class_name, dtype="bfloat16")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(("model_type", "class_name"), FAMILIES_ONCE)
def test_upcycle_then_prune_to_one_gives_the_original_back(model_type: str, class_name: str, tmp_path: Path) -> None:
    save_dense(model_type, class_name, tmp_path / "dense")
    layers = layers_of(tmp_path / "dense", "0,2")
    upcycle(tmp_path / "dense", tmp_path / "moe", num_experts=3, layers=layers, noise=0.0)
    report = prune(tmp_path / "moe", tmp_path / "back", keep=1, by="random", dense=True)
    before, after = weights(tmp_path / "dense"), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(before[n].dtype == t.dtype and torch.equal(before[n], t) for n, t in after.items())
    assert report.params_after == sum(tensor.numel() for tensor in before.values())
    model = getattr(transformers, class_name)
    loaded, info = model.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = flat(model.from_pretrained(tmp_path / "dense").config.to_dict())
    assert {key for key, value in flat(loaded.config.to_dict()).items() if original.get(key, value) != value} == set()


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """What a model of several parts says of each, under one key a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    named = ("_name_or_path", "dtype", "rope_parameters.type")  # the last for transformers 4
    return {key: value for key, value in found.items() if not key.endswith(named)}


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "qwen2", "qwen3"])
def test_extract_takes_the_named_expert(model_type: str, tmp_path: Path) -> None:
    head = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel"}
    save_dense(model_type, head.get(model_type, f"{model_type.title()}ForCausalLM"), tmp_path / "d")
    upcycle(tmp_path / "d", tmp_path / "moe", num_experts=3, noise=0.1)
    report = extract(tmp_path / "moe", tmp_path / "two", expert=2)
    assert report.model_type == model_type
    moe, dense = weights(tmp_path / "moe"), weights(tmp_path / "two")
    compared = 0
    for name, tensor in moe.items():
        number = re.search(r"\.experts\.(\d+)\.", name)
        if number and number[1] == "2":
            assert torch.equal(dense[name.replace(".experts.2.", ".")], tensor)
            compared += 1
        elif re.search(r"\.experts\.(up|down)_proj(_bias)?$", name):
            same = [d for d in dense.values() if d.shape == tensor.shape[1:]]
            assert any(torch.equal(d, tensor[2]) for d in same)
            compared += 1
    assert compared == 4 * (3 if model_type.startswith("qwen") else 4)
    card = (tmp_path / "two" / "README.md").read_text()
    assert "after moeify extract" in card
    assert json.loads((tmp_path / "two" / "config.json").read_text())["model_type"] == model_type


def test_the_dense_layer_can_be_named_by_hand(tmp_path: Path) -> None:
    save_dense("gpt2", "GPT2LMHeadModel", tmp_path / "d")
    upcycle(tmp_path / "d", tmp_path / "moe", num_experts=3, noise=0.1)
    prune(tmp_path / "moe", tmp_path / "out", drop="0:0,1;1:1,2;2:0,2;3:0,1", dense=True)
    moe, dense = weights(tmp_path / "moe"), weights(tmp_path / "out")
    for layer, expert in enumerate((2, 0, 1, 2)):
        up = moe[f"transformer.h.{layer}.mlp.experts.up_proj"][expert]
        assert torch.equal(dense[f"transformer.h.{layer}.mlp.c_fc.weight"], up)


def test_a_score_chooses_the_expert_of_each_layer_as_pruning_does(tmp_path: Path) -> None:
    save_dense("gpt2", "GPT2LMHeadModel", tmp_path / "d")
    upcycle(tmp_path / "d", tmp_path / "moe", num_experts=3, noise=0.1)
    pruned = prune(tmp_path / "moe", tmp_path / "pruned", keep=1, dense=True, by="random", seed=5)
    said: list[str] = []
    with watch_progress(lambda stage: said.append(stage.name)):
        report = extract(tmp_path / "moe", tmp_path / "best", by="random", seed=5)
    assert report.chosen == {layer: kept[0] for layer, kept in pruned.kept.items()}
    assert len(set(report.chosen.values())) > 1
    assert (report.by, report.expert, report.experts) == ("random", None, ())
    assert report.to_dict()["schema"] == "moeify.extract/1"
    assert said
    one, other = weights(tmp_path / "pruned"), weights(tmp_path / "best")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "aimer", "expert": 1}, "--expert has no use where a score chooses"),
        ({"by": "aimer", "shares": (1.0,)}, "--shares has no use where a score chooses"),
        ({"by": "reap"}, "reap needs text to score the experts on"),
        ({"by": "magic"}, "by 'magic' is unknown"),
        ({"dataset": "x.txt", "max_tokens": 0}, "max-tokens must be positive"),
        ({"shares": (0.5, 0.5)}, "2 shares for 1 experts"),
    ],
)
def test_scores_and_named_experts_exclude_one_another(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ExtractConfig(**options)
    assert caught.value.hint


def test_what_cannot_become_dense_is_refused(tmp_path: Path) -> None:
    save("deepseek_v3", tmp_path / "deepseek")
    with pytest.raises(UnsupportedModelError, match="deepseek_v3"):
        extract(tmp_path / "deepseek", tmp_path / "out")
    save("qwen2_moe", tmp_path / "qwen")
    with pytest.raises(CheckpointError, match="has shared experts"):
        prune(tmp_path / "qwen", tmp_path / "out", dense=True, by="random")
    save("bert_moe", tmp_path / "bert")
    with pytest.raises(ConfigError, match="no expert 8"):
        extract(tmp_path / "bert", tmp_path / "out", expert=8)
    assert not (tmp_path / "out").exists()


def test_an_incomplete_dense_model_is_never_published(tmp_path: Path) -> None:
    save("bert_moe", tmp_path / "moe")
    tensors = weights(tmp_path / "moe")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, tmp_path / "moe" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"output\.dense\.bias"):
        extract(tmp_path / "moe", tmp_path / "out", expert=1)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]
    assert isinstance(Checkpoint.open(tmp_path / "moe").config, dict)
