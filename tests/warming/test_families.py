"""Every family and head that can be warmed up: what is trained, and how it is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.checkpoint.reader import Checkpoint
from moeify.routing.loading import load_model
from moeify.upcycling.upcycle import upcycle
from moeify.warming.warmup import warmup
from tests.routing.tiny_mixtures import mixture as native_mixture
from tests.tiny import save_tiny
from tests.warming.mixtures import DEMO, FAST, changed, corpus, demo_mixture, with_tokenizer

ROUTERS = ("gate.weight", "router.weight")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


def run(mixture, output, data, **options):
    return warmup(mixture, output, dataset=str(data), **{**FAST, "steps": 2, **options})


def tiny(folder, family, dtype="float32", **options):
    """A tiny dense model with the shipped tokenizer, and a mask token where it needs one."""
    size = 2049 if family == "bert" else 2048
    dense = with_tokenizer(save_tiny(folder, family, dtype=dtype, vocab_size=size, **options))
    if family == "bert":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(dense)
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        tokenizer.save_pretrained(dense)
    return dense


@pytest.mark.parametrize(
    ("family", "dtype", "unit"),
    [
        ("qwen2", "bfloat16", "token"),
        ("qwen3", "float32", "token"),
        ("bert", "float32", "token"),
        ("bert", "float32", "sequence"),
    ],
)
def test_what_upcycle_writes(family, dtype, unit, data, tmp_path):
    dense = tiny(tmp_path / "dense", family, dtype)
    upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.3, route_by=unit)
    report = run(tmp_path / "moe", tmp_path / "warm", data, reference=str(dense))
    names = changed(tmp_path / "moe", tmp_path / "warm")
    assert names
    assert all(name.endswith(ROUTERS) for name in names)
    assert report.loss == ("masked" if family == "bert" else "causal")
    assert report.steps == 2
    assert report.eval_loss_dense is not None
    tensors = Checkpoint.open(tmp_path / "warm").tensors
    assert {tensors[name].dtype for name in names} == {{"bfloat16": "BF16"}.get(dtype, "F32")}


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe", "mixtral", "olmoe"])
def test_mixtures_that_moeify_did_not_make(model_type, data, tmp_path):
    """Their routers share files with other tensors, and count as trained."""
    model = native_mixture(model_type, vocab_size=2048)
    model.save_pretrained(tmp_path / "moe", max_shard_size="200KB")
    with_tokenizer(tmp_path / "moe")
    report = run(tmp_path / "moe", tmp_path / "warm", data)
    assert report.fit == "none"
    names = changed(tmp_path / "moe", tmp_path / "warm")
    assert names
    assert all(name.endswith(ROUTERS) for name in names)
    held = [name for path in (tmp_path / "warm").glob("*.safetensors") for name in load_file(path)]
    assert len(held) == len(set(held))
    index = json.loads((tmp_path / "warm/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(held)
    assert report.files_linked >= 1
    fitted = run(tmp_path / "moe", tmp_path / "fitted", data, steps=0, fit="kmeans")
    assert fitted.fit == "kmeans"
    assert fitted.max_violation_after < 0.8 * fitted.max_violation_before
    load_model(tmp_path / "fitted")


@pytest.mark.slow
@pytest.mark.parametrize("with_dense", [True, False])
def test_a_model_without_head_learns_hidden_states(with_dense, data, tmp_path):
    dense = tiny(tmp_path / "dense", "bert")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.3)
    teacher = {"reference": str(dense)} if with_dense else {}
    report = run(tmp_path / "moe", tmp_path / "warm", data, steps=16, learning_rate=0.05, **teacher)
    assert report.loss == "distill"
    assert 0 < report.eval_loss_after < report.eval_loss_random
    assert all(n.endswith(ROUTERS) for n in changed(tmp_path / "moe", tmp_path / "warm"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "dtype"), [("moe", "auto"), ("all", "auto"), ("moe", "bfloat16"), ("all", "bfloat16")]
)
def test_training_more_than_routers_writes_the_checkpoints_own_form(what, dtype, data, tmp_path):
    """Computing in bfloat16 rounds neither what is trained nor what is frozen."""
    dense = tiny(tmp_path / "dense", "qwen3")
    upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.3)
    report = run(tmp_path / "moe", tmp_path / "warm", data, train=what, dtype=dtype, device=None)
    names = changed(tmp_path / "moe", tmp_path / "warm")
    routed = {name for name in names if ".experts." in name or name.endswith(ROUTERS)}
    assert any(".experts.3.down_proj" in name for name in routed)
    assert (names - routed == set()) == (what == "moe")
    assert all(not is_rounded(tmp_path / "warm", name) for name in names)
    assert report.eval_loss_after < report.eval_loss_before
    load_model(tmp_path / "warm")


def is_rounded(folder, name):
    """Whether a float32 tensor holds numbers of bfloat16 only."""
    tensor = load_file(Checkpoint.open(folder).tensors[name].path)[name]
    assert tensor.dtype == torch.float32
    return torch.equal(tensor, tensor.bfloat16().float())


def test_headroom_knows_the_expert_that_is_right(data, tmp_path):
    """Expert 2 stays the dense FFN and the others are spoilt: it alone has the dense loss."""
    moe = demo_mixture(tmp_path / "moe", noise=0.0)
    draw = torch.Generator().manual_seed(0)
    for path in moe.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("experts.down_proj"):
                noise = torch.randn(tensor.shape, generator=draw) * tensor.std()
                noise[2] = 0
                tensors[name] = tensor + noise
        save_file(tensors, path, {"format": "pt"})
    dense = {"reference": str(DEMO / "gpt2")}
    report = run(moe, tmp_path / "warm", data, steps=12, learning_rate=0.05, **dense)
    room = report.headroom
    assert not room.experts_identical
    assert room.static_expert == 2
    assert room.loss_static == pytest.approx(report.eval_loss_dense, abs=1e-4)
    assert room.loss_static < room.loss_random
    assert report.eval_loss_after < room.loss_random
