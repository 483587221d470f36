"""Every model type, under the names of its files and under those that transformers holds it by."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from moeify.errors import DatasetError
from moeify.families.values import text_config
from moeify.inspection.inspect import inspect
from moeify.pruning.extract import extract
from moeify.pruning.prune import prune
from moeify.routing.loading import load_model
from moeify.upcycling.adding import add_experts
from moeify.upcycling.attach import attach
from moeify.upcycling.upcycle import upcycle
from tests.families.published_models import NATIVE, tiny
from tests.tiny import save_tiny
from tests.warming.mixtures import corpus, with_tokenizer

ONE_GROUP = {"n_group": 1, "topk_group": 1}
TEXT = {"max_tokens": 200, "seq_len": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(corpus(tmp_path_factory.mktemp("data"), 10))


def model_of(model_type: str, **options: Any) -> PreTrainedModel:
    """Every parameter is away from its default."""
    grouped = ONE_GROUP if "n_group" in NATIVE.get(model_type, {}) else {}
    model = tiny(model_type, tied=False, **grouped, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def both_forms(model: PreTrainedModel, folder: Path) -> tuple[Path, Path]:
    model.save_pretrained(folder / "usual")
    model.save_pretrained(folder / "loaded", save_original_format=False)
    return folder / "usual", folder / "loaded"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def same_model(first: Path, second: Path, tolerance: float = 0.0) -> bool:
    one, two = load_model(first).state_dict(), load_model(second).state_dict()
    return one.keys() == two.keys() and all(
        torch.allclose(tensor, two[name], rtol=0, atol=tolerance) for name, tensor in one.items()
    )


@pytest.mark.parametrize("model_type", [t for t in NATIVE if t not in ("gpt_oss", "llama4_text", "gemma4_text")])
def test_both_forms_become_the_same_model(model_type: str, tmp_path: Path) -> None:
    usual, loaded = both_forms(model_of(model_type), tmp_path)
    assert weights(usual).keys() != weights(loaded).keys()
    for name, options in (("aimer", {"by": "aimer"}), ("merged", {"by": "random", "merge": True})):
        first = prune(usual, tmp_path / f"usual-{name}", keep=2, **options)
        second = prune(loaded, tmp_path / f"loaded-{name}", keep=2, **options)
        assert first.kept == second.kept
        assert inspect(tmp_path / f"loaded-{name}").problems == []
        close = 1e-6 if name == "merged" else 0.0
        assert same_model(tmp_path / f"usual-{name}", tmp_path / f"loaded-{name}", close)
    attach(usual, tmp_path / "usual-fresh")
    attach(loaded, tmp_path / "loaded-fresh")
    assert same_model(tmp_path / "usual-fresh", tmp_path / "loaded-fresh")
    assert not same_model(usual, tmp_path / "loaded-fresh")


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_vl_moe"])
def test_transformers_4_is_told_how_many_experts_are_left(model_type: str, tmp_path: Path) -> None:
    """It reads a key that transformers 5 does not write, and would assume as many as were published."""
    usual, _ = both_forms(model_of(model_type), tmp_path)
    prune(usual, tmp_path / "fewer", keep=2, by="random")
    for folder, said in ((usual, None), (tmp_path / "fewer", 2)):
        config = text_config(json.loads((folder / "config.json").read_text()))
        assert config.get("num_experts") == said and config["num_local_experts"] == (said or 4)


def test_tokens_beyond_the_vocabulary_are_refused(data: str, tmp_path: Path) -> None:
    with_tokenizer(Path(both_forms(model_of("qwen3_5_moe", vocab_size=500), tmp_path)[0]))
    with pytest.raises(DatasetError, match="the model knows 500 tokens"):
        prune(tmp_path / "usual", tmp_path / "out", keep=2, dataset=data, **TEXT)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_family_s_own_mixtures_come_apart_again(family: str, tmp_path: Path) -> None:
    """Dense models out of tensors that join gate and up, and experts that are added to them."""
    dense = save_tiny(tmp_path / "dense", family)
    other = save_tiny(tmp_path / "other", family, initializer_range=0.5)
    upcycle(dense, tmp_path / "moe", num_experts=3, noise=0.0)
    model = load_model(tmp_path / "moe")
    moe = both_forms(model, tmp_path)[1]
    prune(moe, tmp_path / "back", dense=True)
    found = weights(tmp_path / "back")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(dense).items())
    figures = inspect(moe, weights=True, reference=str(dense)).layers[0].weights
    assert figures is not None and figures["dense_distance"]["max"] == 0.0
    add_experts(moe, tmp_path / "more", experts=(str(other),))
    extract(tmp_path / "more", tmp_path / "newest", expert=3)
    newest = weights(tmp_path / "newest")
    ffn = {name: t for name, t in weights(other).items() if ".mlp." in name}
    assert ffn and all(torch.equal(newest[name], tensor) for name, tensor in ffn.items())
    extract(tmp_path / "more", tmp_path / "mean", expert=(0, 3))
    mean = weights(tmp_path / "mean")
    for name, tensor in ffn.items():
        assert torch.allclose(mean[name], (tensor + weights(dense)[name]) / 2, atol=1e-6)
