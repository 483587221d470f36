"""Slices in transformers' own classes: groups are copies whose experts share a router row, and a token visits whole
copies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError
from moeify.routing.loaded import mixtures_in
from moeify.routing.loading import load_model
from moeify.routing.routes import all_experts, one_expert, random_experts
from moeify.training.selection import train_only
from moeify.warming.warmup import warmup
from tests.families.test_contract import load_strictly
from tests.families.test_native_conversions import LLAMA3, same_config
from tests.tiny import save_tiny, state
from tests.upcycling.specialists import ffn_tensors, specialist
from tests.warming.mixtures import FAST, corpus, with_tokenizer

TARGETS = [("qwen2", "glm4_moe"), ("qwen3", "glm4_moe"), ("llama", "glm4_moe"), ("qwen3", "dots1")]
SHAPES = [  # slices, of which shared, copies, of which visited
    (4, 1, 3, 1),
    (4, 0, 3, 2),
    (3, 2, 2, 1),
    (1, 0, 2, 2),
]
IDS = torch.arange(4, 52).reshape(3, 16)


def sliced(dense: Path, moe: Path, shape: tuple[int, ...], **options: Any) -> Any:
    slices, shared, copies, visited = shape
    made = {"slices": slices, "shared": shared, "num_experts": copies, "top_k": visited, "noise": 0.0}
    return moeify.upcycle(dense, moe, **{**made, "arch": "glm4_moe", "router": "normal", **options})


def equal(first: Path, second: Path) -> bool:
    one, two = state(first), state(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(folder: Path) -> list[torch.Tensor]:
    """The router of every layer as [copies, slices, H]."""
    config = json.loads((folder / "config.json").read_text())
    found = [tensor for name, tensor in state(folder).items() if name.endswith("mlp.gate.weight")]
    return [tensor.unflatten(0, (-1, config.get("expert_slices", 1))) for tensor in found]


def tied(folder: Path) -> bool:
    return all(torch.equal(router, router[:, :1].expand_as(router)) for router in rows(folder))


@pytest.mark.parametrize(("family", "arch"), TARGETS)
def test_it_computes_what_the_dense_model_computes_and_becomes_it_again(
    family: str, arch: str, tmp_path: Path
) -> None:
    """In every shape, by every command that leaves whole copies."""
    dense = save_tiny(tmp_path / "dense", family)
    for number, shape in enumerate(SHAPES):
        moe = tmp_path / f"moe{number}"
        report = sliced(dense, moe, shape, arch=arch)
        routed = shape[0] - shape[1]
        assert (report.model_type, report.num_experts, report.top_k) == (arch, shape[2] * routed, shape[3] * routed)
        model = load_strictly(moe)
        assert report.params_total == sum(parameter.numel() for parameter in model.parameters())
        config = json.loads((moe / "config.json").read_text())
        groups = (shape[2], shape[3]) if routed > 1 else (1, 1)
        assert (config["n_group"], config["topk_group"]) == groups
        assert (config["routed_scaling_factor"], config["norm_topk_prob"]) == (routed, True)
        assert moeify.inspect(moe, weights=True, reference=str(dense)).problems == []
        assert moeify.verify(dense, moe).relative_diff <= 1e-6
        moeify.extract(moe, tmp_path / f"back{number}", expert=1)
        assert equal(dense, tmp_path / f"back{number}") and same_config(dense, tmp_path / f"back{number}")
    moeify.attach(tmp_path / "moe0", tmp_path / "attached", top_k=6)
    assert tied(tmp_path / "attached")
    for name, keep in (("attached", 6), ("moe0", 3)):
        moeify.prune(tmp_path / name, tmp_path / f"{name}-less", keep=keep, by="random", merge=name == "attached")
        assert moeify.verify(dense, tmp_path / f"{name}-less").relative_diff <= 1e-6
        assert moeify.inspect(tmp_path / f"{name}-less").problems == []
    moeify.prune(tmp_path / "moe0-less", tmp_path / "dense-again", dense=True, by="aimer")
    assert equal(dense, tmp_path / "dense-again")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_an_output_set_apart_for_vllm_is_shared_again_in_the_dense_model(family: str, tmp_path: Path) -> None:
    """vLLM's class has no tied output; where training moved it, it stays apart."""
    dense = save_tiny(tmp_path / "dense", family, tie_word_embeddings=True)
    sliced(dense, tmp_path / "moe", (4, 1, 3, 2))
    assert not json.loads((tmp_path / "moe" / "config.json").read_text())["tie_word_embeddings"]
    held = state(tmp_path / "moe")
    assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])
    assert "| vLLM | yes |" in (tmp_path / "moe" / "README.md").read_text()
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=1)
    moeify.prune(tmp_path / "moe", tmp_path / "fewer", keep=6, by="random")
    moeify.prune(tmp_path / "fewer", tmp_path / "pruned", dense=True, by="aimer")
    for back in ("back", "pruned"):
        assert equal(dense, tmp_path / back) and same_config(dense, tmp_path / back)
    for file in (tmp_path / "moe").glob("*.safetensors"):
        tensors = load_file(file)
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"][3, 5] += 1
            save_file(tensors, file, metadata={"format": "pt"})
    moeify.extract(tmp_path / "moe", tmp_path / "moved", expert=1)
    assert not json.loads((tmp_path / "moved" / "config.json").read_text())["tie_word_embeddings"]
    assert torch.equal(state(tmp_path / "moved")["lm_head.weight"], state(tmp_path / "moe")["lm_head.weight"])


def test_half_precision_is_as_good_as_the_dense_models_and_scaled_rope_goes_along(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen2", dtype="bfloat16", rope_parameters=LLAMA3)
    sliced(dense, tmp_path / "moe", (4, 1, 3, 2))
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 2e-2
    assert state(tmp_path / "moe")["model.layers.0.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=0)
    assert equal(dense, tmp_path / "back") and same_config(dense, tmp_path / "back")


@pytest.mark.parametrize(("family", "arch"), [("llama", "glm4_moe"), ("qwen3", "dots1")])
@torch.no_grad()
def test_any_tied_router_in_any_implementation_computes_the_dense_model(
    family: str, arch: str, tmp_path: Path
) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    sliced(dense, tmp_path / "moe", (4, 1, 3, 2), arch=arch)
    expected, model = load_model(dense)(IDS).logits, load_model(tmp_path / "moe")
    layers = next(iter(mixtures_in(model).values())).layers.values()
    drawn = [layer.router.weight.clone() for layer in layers]
    for scale in (0.0, 1.0, 100.0):  # undecided, as drawn, certain
        for layer, rows_of_layer in zip(layers, drawn, strict=True):
            layer.router.weight.copy_(scale * rows_of_layer)
        for implementation in ("eager", "batched_mm", "grouped_mm"):
            model.set_experts_implementation(implementation)
            off = (model(IDS).logits - expected).norm() / expected.norm()
            assert off <= 1e-6, (scale, implementation)
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with_cache, without = (model.generate(IDS[:, :5], use_cache=use, **asked) for use in (True, False))
    assert torch.equal(with_cache, without)
    model.save_pretrained(tmp_path / "again")  # its class keeps keys that it does not know
    moeify.extract(tmp_path / "again", tmp_path / "back", expert=2)
    assert equal(dense, tmp_path / "back")


@torch.no_grad()
def test_rows_that_move_apart_change_weights_and_never_mix_copies(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    sliced(dense, tmp_path / "moe", (4, 1, 4, 2))
    model, expected = load_model(tmp_path / "moe"), load_model(dense)(IDS).logits
    for layer in next(iter(mixtures_in(model).values())).layers.values():
        layer.router.weight *= 1 + 0.01 * torch.randn_like(layer.router.weight)
    off = (model(IDS).logits - expected).norm() / expected.norm()
    assert 1e-6 < off < 1e-2


@torch.no_grad()
def test_routes_send_tokens_to_whole_copies(tmp_path: Path) -> None:
    """Whatever sends them: a copy is its source, and of copies of the base every route gives the base's output."""
    dense = save_tiny(tmp_path / "dense", "qwen3")
    for number, name in enumerate(("one", "two")):
        specialist(dense, tmp_path / name, number)
    sliced(dense, tmp_path / "moe", (4, 0, 2, 1), experts_from=[str(tmp_path / name) for name in ("one", "two")])
    model = load_model(tmp_path / "moe")
    for copy, name in enumerate(("one", "two")):
        moeify.extract(tmp_path / "moe", tmp_path / f"{name}-again", expert=copy)
        found, wanted = ffn_tensors(tmp_path / f"{name}-again"), ffn_tensors(tmp_path / name)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        with next(iter(mixtures_in(model).values())).rerouted(one_expert(copy)):
            routed = model(IDS).logits
        torch.testing.assert_close(routed, load_model(tmp_path / f"{name}-again")(IDS).logits, rtol=1e-5, atol=1e-5)
    sliced(dense, tmp_path / "copies", (4, 1, 4, 2))
    model, expected = load_model(tmp_path / "copies"), load_model(dense)(IDS).logits
    for route in (random_experts(0), all_experts(), one_expert(3)):
        with next(iter(mixtures_in(model).values())).rerouted(route):
            torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_rows_stay_tied_in_every_way_to_learn(tmp_path: Path) -> None:
    dense = with_tokenizer(save_tiny(tmp_path / "dense", "qwen3", vocab_size=2048))
    text = {"dataset": str(corpus(tmp_path, 60)), "domain_column": "domain"}
    for number, name in enumerate(("prose", "code")):
        specialist(dense, tmp_path / name, number, scale=0.3)
    entries = [str(tmp_path / name) for name in ("prose", "code")]
    known = {"router": "data", "fit_tokens": 1024, "seq_len": 32, **text}
    sliced(dense, tmp_path / "known", (4, 0, 2, 2), experts_from=entries, **known)
    assert tied(tmp_path / "known")
    for name, options in {
        "kmeans": {"fit": "kmeans"},
        "domains": {"fit": "domains"},
        "bias": {"balance": "bias"},
    }.items():
        start = {"fit": "none", "steps": 3, "learning_rate": 0.05, **options}
        report = warmup(tmp_path / "known", tmp_path / name, **text, **{**FAST, **start, "eval_tokens": 256})
        assert report.headroom.expert_difference > 0.1
        assert tied(tmp_path / name)
        before, after = (torch.cat(rows(folder)) for folder in (tmp_path / "known", tmp_path / name))
        assert (before - after).flatten(1).norm(dim=1).count_nonzero() == len(after), "every copy learned"
    model = load_model(tmp_path / "known").train()
    train_only(model, "routers")
    model(input_ids=IDS, labels=IDS).loss.backward()
    for layer in next(iter(mixtures_in(model).values())).layers.values():
        gradient = layer.router.weight.grad.unflatten(0, (2, 4))
        torch.testing.assert_close(gradient, gradient[:, :1].expand_as(gradient), rtol=0, atol=0)
        assert gradient.norm() > 1e-6


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    for family, options, told in (
        ("qwen3", {"arch": "qwen3_moe"}, r"choose among all\s+experts at once.*0.43"),
        ("qwen3", {"slices": 5}, "48 neurons, which --slices 5 does not divide"),
        ("qwen3", {"layers": "odd"}, "no way to say that layers 0, 2 stay dense"),
    ):
        dense = tmp_path / family if (tmp_path / family).exists() else save_tiny(tmp_path / family, family)
        with pytest.raises(ConfigError, match=told):
            sliced(dense, tmp_path / "no", (4, 1, 3, 1), **options)
    for family, options, told in (
        ("llama", {"attention_bias": True}, "biases in its layers"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5},
            "windows in its attention",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            sliced(save_tiny(tmp_path / f"{family}-more", family, **options), tmp_path / "no", (4, 1, 3, 1))
    moe = tmp_path / "moe"
    sliced(tmp_path / "qwen3", moe, (4, 0, 3, 1))
    for act, told in (
        (
            lambda: moeify.prune(moe, tmp_path / "no", keep=7, by="random"),
            "4 experts that must stay whole.*multiple of 4",
        ),
        (lambda: moeify.prune(moe, tmp_path / "no", drop="all:0,1,4,5"), "would keep expert 2 of 0-3, one copy"),
        (lambda: moeify.add_experts(moe, tmp_path / "no", experts=[str(tmp_path / "qwen3")]), "copies in 4 slices"),
        (lambda: moeify.attach(moe, tmp_path / "no", top_k=6), "multiple of the 4 slices"),
    ):
        with pytest.raises(ConfigError, match=told):
            act()
    name = "model.layers.1.mlp.shared_experts.down_proj.weight"
    shared = Checkpoint.open(moe).tensors[name].path
    weights = load_file(shared)
    save_file(weights | {name: weights[name] + 1}, shared, metadata={"format": "pt"})  # trained by somebody
    with pytest.raises(CheckpointError, match="has shared experts"):
        moeify.extract(moe, tmp_path / "no", expert=0)
    config = json.loads((moe / "config.json").read_text())
    (moe / "config.json").write_text(json.dumps({**config, "n_group": 1}))
    with pytest.raises(CheckpointError, match="n_group must be 3 where a group is a copy in 4 slices"):
        moeify.attach(moe, tmp_path / "no")
    assert ["n_group must be 3" in problem.message for problem in moeify.inspect(moe).problems] == [True]
    assert not (tmp_path / "no").exists()
