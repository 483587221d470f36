"""A bias that chooses and does not weigh in moeify's own classes: written, attached, kept in float32, cut along."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import moeify
from moeify.errors import ConfigError
from moeify.families.registry import moe_layout
from moeify.routing.loaded import mixtures_in
from tests.tiny import save_tiny, state

IDS = torch.arange(4, 52).reshape(3, 16)
NAME = ".mlp.routing.e_score_correction_bias"


def model_of(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def layers_of(model: Any) -> dict[int, Any]:
    return mixtures_in(model)[""].layers


@torch.no_grad()
@pytest.mark.parametrize(("top_k", "slices"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_it_chooses_and_does_not_weigh(top_k: int, slices: int, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2", dtype="bfloat16")
    options: dict[str, Any] = {"num_experts": 4, "top_k": top_k, "slices": slices, "noise": 0}
    plain = moeify.upcycle(dense, tmp_path / "plain", **options)
    biased = moeify.upcycle(dense, tmp_path / "moe", router_bias=True, **options)
    assert biased.params_total == plain.params_total == moeify.inspect(tmp_path / "moe").params_total
    stored = state(tmp_path / "moe")
    added = {name: stored[name] for name in stored.keys() - state(tmp_path / "plain").keys()}
    assert len(added) == 4 and all(name.endswith(NAME) for name in added)
    assert all(tensor.dtype == torch.float32 and not tensor.any() for tensor in added.values())
    expected, model = model_of(dense, dtype="float32")(IDS).logits, model_of(tmp_path / "moe", dtype="float32")
    for layer in layers_of(model).values():
        layer.bias.uniform_(-1, 1)
        logits = torch.randn(50, 4 * slices)
        _, weights, chosen = layer.chooser(logits)
        inside = logits.unflatten(1, (slices, 4))
        wanted = (inside.softmax(-1) + layer.bias.unflatten(0, (slices, 4))).topk(top_k).indices
        assert torch.equal(chosen.unflatten(1, (slices, top_k)) % 4, wanted)
        seen = layer.choice(logits)["selection"].unflatten(1, (slices, 4))
        assert torch.equal(seen.topk(top_k).indices, wanted)
        shares = inside.gather(-1, wanted).softmax(-1)
        torch.testing.assert_close(weights.unflatten(1, (slices, top_k)), shares)
    assert (model(IDS).logits - expected).norm() <= 1e-6 * expected.norm()  # copies, whatever is chosen


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {"router_bias": True}),
        ("gpt2", {"router_bias": True, "null_experts": 2}),
        ("qwen3", {"arch": "dots1", "slices": 2}),
        ("ernie4_5", {}),
        ("lfm2", {}),
    ],
    ids=str,
)
def test_it_lies_in_the_file_of_the_routers(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A warm-up that moves biases writes that file anew and links the others."""
    moeify.upcycle(save_tiny(tmp_path / "dense", family), tmp_path / "moe", num_experts=4, **options)
    *others, last = (set(load_file(path)) for path in sorted((tmp_path / "moe").glob("*.safetensors")))
    bias = moe_layout(json.loads((tmp_path / "moe/config.json").read_text())).rule.selection_bias
    assert bias is not None
    biases = {name for name in set().union(*others, last) if name.endswith(bias)}
    assert biases and biases <= last
    assert not any("expert" in name for name in last - biases)


@torch.no_grad()
def test_it_stays_in_float32_whatever_the_model_is_in(tmp_path: Path) -> None:
    """bfloat16 would swallow steps of 0.001 above a half."""
    dense = save_tiny(tmp_path / "dense", "gpt2", dtype="bfloat16")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, router_bias=True)
    model = model_of(tmp_path / "moe", dtype="bfloat16")
    for layer in layers_of(model).values():
        layer.bias.fill_(0.7)
        layer.bias.add_(0.001)
    model.half().bfloat16().save_pretrained(tmp_path / "saved")
    for layer in layers_of(model_of(tmp_path / "saved", dtype="bfloat16")).values():
        assert (layer.router.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(layer.bias, torch.full((4,), 0.7) + 0.001)


def test_it_is_attached_cut_and_grows_with_the_experts(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0)
    moeify.attach(tmp_path / "moe", tmp_path / "fresh", router_bias=True)
    model = model_of(tmp_path / "fresh")
    for layer in layers_of(model).values():
        layer.bias.copy_(torch.arange(4.0))
    model.save_pretrained(tmp_path / "moved")
    pruned = moeify.prune(tmp_path / "moved", tmp_path / "pruned", keep=2, by="aimer")
    for number, kept in pruned.kept.items():
        assert state(tmp_path / "pruned")[f"transformer.h.{number}{NAME}"].tolist() == [float(e) for e in kept]
    moeify.add_experts(tmp_path / "moved", tmp_path / "grown", experts=(str(dense),))
    assert state(tmp_path / "grown")[f"transformer.h.1{NAME}"].tolist() == [0, 1, 2, 3, 0]
    moeify.prune(tmp_path / "moved", tmp_path / "dense-again", keep=1, dense=True, by="aimer")
    base, back = state(dense), state(tmp_path / "dense-again")
    assert base.keys() == back.keys() and all(torch.equal(base[name], back[name]) for name in base)
    for name in ("fresh", "pruned", "grown"):
        report = moeify.inspect(tmp_path / name)
        assert report.problems == [] and report.router is not None and report.router.selection_bias
    moeify.attach(tmp_path / "moved", tmp_path / "again")  # a new router is not steered by an old bias
    assert not state(tmp_path / "again")[f"transformer.h.1{NAME}"].any()


def test_other_classes_are_refused(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    with pytest.raises(ConfigError, match="--router-bias needs a class of moeify's own, and qwen3_moe") as caught:
        moeify.upcycle(dense, tmp_path / "moe", router_bias=True)
    assert caught.value.hint == "pass --arch own"
    granite = save_tiny(tmp_path / "granite", "granite")
    with pytest.raises(ConfigError, match="--router-bias needs a class of moeify's own, and granitemoe") as caught:
        moeify.upcycle(granite, tmp_path / "moe", router_bias=True)
    assert caught.value.hint == "leave --router-bias out"
    moeify.upcycle(dense, tmp_path / "native")
    with pytest.raises(ConfigError, match="--router-bias needs a class of moeify's own"):
        moeify.attach(tmp_path / "native", tmp_path / "out", router_bias=True)
    assert not (tmp_path / "out").exists()
