"""Fresh routers: written alone, everything else linked, also where routers are missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeify
from moeify.errors import CheckpointError, ConfigError, UnsupportedModelError
from moeify.families.registry import moe_layout
from moeify.routing.collection import RoutedTokens, observed
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from tests.families.published_models import EXPERTS, tiny
from tests.families.test_contract import load_strictly
from tests.tiny import LM_HEADS, save_tiny, state


def make(tmp_path: Path, family: str, **options: object) -> Path:
    dense = save_tiny(tmp_path / "dense", family)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0, **options)
    return tmp_path / "moe"


@pytest.mark.parametrize("family", LM_HEADS)
def test_only_routers_are_written(tmp_path: Path, family: str) -> None:
    moe = make(tmp_path, family, router="zeros")
    report = moeify.attach(moe, tmp_path / "fresh", top_k=3, router="calibrated")
    before, after = state(moe), state(tmp_path / "fresh")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after)
    assert changed == {n for n in before if n.endswith(("router.weight", "mlp.gate.weight"))}
    assert len(changed) == 4
    first = "model-00001-of-00002.safetensors"
    assert os.path.samefile(moe / first, tmp_path / "fresh" / first)
    assert report.files_linked == 1
    assert report.bytes_written < 10_000
    assert all(outlook is not None and outlook.entropy > 0.999 for outlook in report.before.values())
    assert all(0.9 < outlook.entropy < 0.97 for outlook in report.after.values())
    load_strictly(tmp_path / "fresh")
    config = json.loads((tmp_path / "fresh" / "config.json").read_text())
    assert config["num_experts_per_tok"] == 3
    assert moeify.verify(tmp_path / "dense", tmp_path / "fresh").relative_diff <= 1e-6
    steps = json.loads((tmp_path / "fresh" / "moeify.json").read_text())["steps"]
    assert [step["command"] for step in steps] == ["upcycle", "attach"]


def test_across_file_systems_files_are_copied(tmp_path: Path, elsewhere: Path) -> None:
    moe = make(tmp_path, "qwen3")
    report = moeify.attach(moe, elsewhere / "fresh", router="zeros")
    first = "model-00001-of-00002.safetensors"
    assert (moe / first).read_bytes() == (elsewhere / "fresh" / first).read_bytes()
    assert (report.files_linked, report.files_copied) == (0, 1)
    assert report.bytes_written > (moe / first).stat().st_size


@pytest.mark.parametrize("family", ["bert", "qwen3"])
@pytest.mark.parametrize("missing", [True, False])
def test_files_that_mix_routers_with_others(tmp_path: Path, family: str, missing: bool) -> None:
    moe = make(tmp_path, family)
    tensors = state(moe)
    routers = [n for n in tensors if n.endswith(("router.weight", "mlp.gate.weight"))]
    for path in moe.glob("model*"):
        path.unlink()
    dropped = routers[:2] if missing else []
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    save_file(kept, moe / "model.safetensors", metadata={"format": "pt"})
    report = moeify.attach(moe, tmp_path / "fresh")
    assert report.files_linked == 0
    assert [outlook is None for outlook in report.before.values()].count(True) == len(dropped)
    files = [set(load_file(path)) for path in sorted((tmp_path / "fresh").glob("*.safetensors"))]
    assert files[-1] == set(routers)
    assert files[0] == set(tensors) - set(routers)
    load_strictly(tmp_path / "fresh")
    assert moeify.verify(tmp_path / "dense", tmp_path / "fresh").relative_diff <= 1e-6


def test_a_native_checkpoint_that_moeify_did_not_make(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        head_dim=16,
        norm_topk_prob=True,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "native")
    moeify.attach(tmp_path / "native", tmp_path / "fresh", top_k=4)
    model = load_strictly(tmp_path / "fresh")
    assert model.config.num_experts_per_tok == 4


@pytest.mark.parametrize("name", ["Mixtral", "Olmoe", "GraniteMoe", "GptOss", "Glm4Moe"])
def test_mixtures_of_other_families(tmp_path: Path, name: str) -> None:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        head_dim=16,
        first_k_dense_replace=0,
        pad_token_id=0,
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path / "native")
    report = moeify.attach(tmp_path / "native", tmp_path / "fresh", top_k=3, router="zeros")
    model = load_strictly(tmp_path / "fresh")
    assert report.top_k_before == 2
    assert model.config.num_experts_per_tok == 3
    routers = [t for n, t in state(tmp_path / "fresh").items() if n.endswith(ROUTER_NAMES)]
    assert len(routers) == 2
    assert not any(router.any() for router in routers)


ROUTER_NAMES = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "router.weight", "router.layer.weight")


def test_bad_input(tmp_path: Path) -> None:
    moe = make(tmp_path, "bert")
    with pytest.raises(ConfigError, match="top-k must lie between 1 and the number of experts, 4"):
        moeify.attach(moe, tmp_path / "out", top_k=5)
    with pytest.raises(UnsupportedModelError, match="bert") as caught:
        moeify.attach(tmp_path / "dense", tmp_path / "out")
    assert "upcycle" in (caught.value.hint or "")
    tensors = state(moe)
    name = next(n for n in tensors if n.endswith("router.weight"))
    last = sorted(moe.glob("*.safetensors"))[-1]
    routers = load_file(last)
    routers[name] = torch.zeros(5, 32)
    save_file(routers, last)
    with pytest.raises(CheckpointError, match="router"):
        moeify.attach(moe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("model_type", "ending"),
    [
        ("gpt_oss", "router.bias"),
        ("deepseek_v3", "e_score_correction_bias"),
        ("glm4_moe", "e_score_correction_bias"),
        ("minimax_m2", "e_score_correction_bias"),
        ("ernie4_5_moe", "e_score_correction_bias"),
        ("lfm2_moe", "expert_bias"),
    ],
)
def test_biases_of_the_old_router_do_not_steer_the_new_one(
    model_type: str, ending: str, loaded: bool, tmp_path: Path
) -> None:
    model = tiny(model_type, tied=False)
    biases = {name for name in model.state_dict() if name.endswith(ending)}
    with torch.no_grad():
        for name in biases:  # half of the experts are dead
            model.state_dict()[name].view(-1)[:2] = -50.0
    model.save_pretrained(tmp_path / "moe", save_original_format=not loaded)
    before = state(tmp_path / "moe")
    stored = {name for name in before if name.endswith(ending)}
    assert len(stored) == len(biases) > 0
    report = moeify.attach(tmp_path / "moe", tmp_path / "fresh")
    assert set(report.biases_zeroed) == stored
    after = state(tmp_path / "fresh")
    assert all(not after[name].any() for name in stored)
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert tokens_of_experts(tmp_path / "moe")[:2].sum() == 0
    counts = tokens_of_experts(tmp_path / "fresh")
    assert counts.min() > 0.1 * counts.mean()


def tokens_of_experts(folder: Path) -> torch.Tensor:
    """How many tokens of random text visit each expert of all layers together."""
    model = load_model(folder)
    counts = torch.zeros(EXPERTS)
    ids = torch.randint(3, 64, (16, 32), generator=torch.Generator().manual_seed(0))

    def count(tokens: RoutedTokens) -> None:
        counts.add_(tokens.experts.flatten().bincount(minlength=EXPERTS))

    layout = moe_layout(model.config.to_dict())
    with torch.no_grad(), observed(LoadedMixture(model, layout), count) as expect:
        expect(torch.ones_like(ids), None)
        model(input_ids=ids)
    return counts
