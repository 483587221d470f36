"""Slices: parts of a feed-forward network with experts and a router of their own compute what the whole does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import moeify
from moeify.errors import ConfigError
from moeify.pruning.extract import extract
from moeify.upcycling.verify import verify
from tests.tiny import save_tiny, state, tolerance

TYPES = ("bert", "gpt2", "modernbert", "distilbert")
IDS = torch.arange(4, 52).reshape(3, 16)


@pytest.fixture(scope="module", params=TYPES)
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A type, its dense checkpoint, and that with 3 experts in each of 4 slices, 2 of which a token visits."""
    folder = tmp_path_factory.mktemp(request.param)
    dense = save_tiny(folder / "dense", request.param)
    moeify.upcycle(dense, folder / "moe", slices=4, num_experts=3, top_k=2, noise=0)
    return request.param, dense, folder / "moe"


def model_of(folder: Path, **options: Any) -> Any:
    auto = AutoModelForCausalLM if "gpt2" in str(folder) else AutoModelForMaskedLM
    return auto.from_pretrained(folder, **options).eval()


@torch.no_grad()
def test_it_computes_what_the_dense_model_computes(made: tuple[str, Path, Path]) -> None:
    kind, dense, moe = made
    expected = model_of(dense)(IDS).logits
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = model_of(moe, experts_implementation=implementation)
        for scale in (0.0, 1.0, 30.0):  # undecided, as drawn, certain
            for name, parameter in model.named_parameters():
                if "router" in name:
                    parameter.normal_(0, scale * 0.1)
            found = model(IDS).logits
            assert (found - expected).norm() <= tolerance(kind) * expected.norm(), (implementation, scale)


def test_rows_with_noise_and_half_precision_change_no_more_than_for_one_expert(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert", dtype="bfloat16")
    for name, options in {"slices": {"slices": 4, "num_experts": 4, "top_k": 1}, "copies": {"num_experts": 4}}.items():
        moeify.upcycle(dense, tmp_path / name, noise=0, router="normal", **options)
        assert verify(dense, tmp_path / name).relative_diff <= tolerance("bert", "bfloat16")


def test_experts_hold_their_slice(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert")
    moeify.upcycle(dense, tmp_path / "moe", slices=3, num_experts=2, top_k=1, noise=0)
    layer = "bert.encoder.layer.1"
    up, bias, down, last = (
        state(dense)[f"{layer}.{name}"]
        for name in (
            "intermediate.dense.weight",
            "intermediate.dense.bias",
            "output.dense.weight",
            "output.dense.bias",
        )
    )
    found = {name.removeprefix(f"{layer}.intermediate.experts."): t for name, t in state(tmp_path / "moe").items()}
    for expert in range(6):
        part = slice(expert // 2 * 16, expert // 2 * 16 + 16)
        assert torch.equal(found["up_proj"][expert], up[part])
        assert torch.equal(found["up_proj_bias"][expert], bias[part])
        assert torch.equal(found["down_proj"][expert], down[:, part])
        torch.testing.assert_close(found["down_proj_bias"][expert], last / 3)


def test_noise_sets_the_experts_of_a_slice_apart(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "modernbert")
    report = moeify.upcycle(dense, tmp_path / "moe", slices=2, num_experts=2, top_k=1, noise=0.1)
    assert (report.num_experts, report.top_k, report.slices) == (4, 2, 2)
    assert report.noise_effective == pytest.approx(0.1, rel=0.05)
    experts = next(t for name, t in state(tmp_path / "moe").items() if name.endswith("experts.down_proj"))
    assert not torch.equal(experts[0], experts[1])
    assert verify(dense, tmp_path / "moe").relative_diff > 1e-3


def test_a_copy_of_every_slice_is_the_dense_checkpoint_again(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, dense, moe = made
    extract(moe, tmp_path / "copy", expert=2)
    moeify.prune(moe, tmp_path / "scored", dense=True, by="random")
    moeify.prune(moe, tmp_path / "named", dense=True, drop="all:0,1,3,5,6,8,9,11")
    expected = state(dense)
    for name in ("copy", "scored", "named"):
        found = state(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
    extract(moe, tmp_path / "mean", expert=(0, 2))
    for key, tensor in state(tmp_path / "mean").items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-6, rtol=1e-6)


def test_every_router_learns(made: tuple[str, Path, Path]) -> None:
    model = model_of(made[2])
    model(IDS, labels=IDS, output_router_logits=True).loss.backward()
    for name, parameter in model.named_parameters():
        if "router" in name:
            assert parameter.grad.flatten(1).norm(dim=1).count_nonzero() == len(parameter), name


@pytest.mark.parametrize("route_by", ["token", "sequence"])
def test_it_generates_with_a_cache_as_without(route_by: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "gpt2", "gpt2")
    moeify.upcycle(dense, tmp_path / "gpt2-moe", slices=4, num_experts=2, top_k=1, noise=0.3, route_by=route_by)
    model = model_of(tmp_path / "gpt2-moe")
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with_cache, without = (model.generate(IDS[:, :5], use_cache=use, **asked) for use in (True, False))
    assert torch.equal(with_cache, without)


def test_it_is_compiled_and_saved_as_any_other(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "distilbert")
    moeify.upcycle(dense, tmp_path / "moe", slices=4, num_experts=2, top_k=1)
    model = model_of(tmp_path / "moe")
    with torch.no_grad():
        expected = model(IDS).logits
        traced = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(traced(IDS).logits, expected)
        model.save_pretrained(tmp_path / "again")
        assert torch.equal(model_of(tmp_path / "again")(IDS).logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": 5}, "48 neurons, which --slices 5 does not divide"),
        ({"slices": 0}, "must be 1 to 512"),
        ({"slices": 4, "top_k": 9}, "between 1 and the number of experts, 8"),
        ({"slices": 4, "recipe": "sources", "experts_from": ("a", "b")}, "recipe sources has no use for --slices"),
        ({"slices": 4, "reinit": 0.5}, "recipe slices has no use for --reinit"),
        ({"slices": 4, "recipe": "copies"}, "recipe copies has no use for --slices"),
        ({"recipe": "slices"}, "--recipe slices needs --slices"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert")
    with pytest.raises(ConfigError, match=message):
        moeify.upcycle(dense, tmp_path / "moe", **{"num_experts": 8, **options})
    assert not (tmp_path / "moe").exists()


def test_native_classes_name_moeifys_own(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(ConfigError, match="choose among all experts at once") as refused:
        moeify.upcycle(dense, tmp_path / "moe", slices=4)
    assert refused.value.hint == "pass --arch own or --arch glm4_moe"
    moeify.upcycle(dense, tmp_path / "moe", slices=4, arch="own", noise=0)
    assert verify(dense, tmp_path / "moe").relative_diff <= tolerance("llama")
