"""What upcycling writes: noise, shards, files beside the weights, dry runs and refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeify
from moeify.errors import (
    CheckpointError,
    ConfigError,
    MoeifyError,
    OutputError,
    TensorNotFoundError,
    UnsupportedModelError,
)
from moeify.routing.loading import load_model
from tests.tiny import LM_HEADS, save_tiny, state, tree


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bert") / "dense", "bert")


def weights(folder: Path) -> dict[str, bytes]:
    return {k: v.contiguous().view(torch.uint8).numpy().tobytes() for k, v in state(folder).items()}


def test_dry_run_reads_headers_only_and_counts_right(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headers-only"
    shutil.copytree(bert, folder)
    path = folder / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little") + 8
    with open(path, "r+b") as file:  # the same size, but no weights in it
        size = path.stat().st_size
        file.truncate(length)
        file.truncate(size)
    planned = moeify.upcycle(folder, tmp_path / "out", num_experts=4, dry_run=True)
    assert planned.dry_run
    assert not (tmp_path / "out").exists()
    done = moeify.upcycle(bert, tmp_path / "out", num_experts=4)
    assert done.bytes_written == planned.bytes_written
    files = (tmp_path / "out").glob("*.safetensors")
    assert sum(path.stat().st_size for path in files) == done.bytes_written
    model = load_model(tmp_path / "out")
    assert done.params_total == planned.params_total == model.num_parameters()


@pytest.mark.parametrize("family", LM_HEADS)
def test_active_parameters_are_those_of_top_k_experts(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    by_top_k = [moeify.upcycle(dense, num_experts=4, top_k=k, dry_run=True).params_active for k in (1, 2, 4)]
    full = moeify.upcycle(dense, num_experts=4, top_k=4, dry_run=True)
    assert by_top_k[2] == full.params_total
    assert by_top_k[2] - by_top_k[1] == 2 * (by_top_k[1] - by_top_k[0])


@pytest.mark.parametrize(("family", "expected"), [("qwen3", 1.22), ("bert", 1.0), ("gpt2", 1.0)])
def test_noise_moves_the_ffn_by_what_theory_says(tmp_path: Path, family: str, expected: float) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 1}
    if family == "gpt2":
        sizes = {"n_embd": 256, "n_inner": 1024, "n_layer": 1}
    dense = save_tiny(tmp_path / "dense", family, **sizes)
    _shape_like_trained(dense / "model.safetensors")
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.01, router="zeros")
    assert report.noise_effective == pytest.approx(0.01, rel=0.02)
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = _ffn(load_model(dense), family)(x)
        after = _ffn(load_model(tmp_path / "moe"), family)(x)
    error = ((after - before).norm() / before.norm()).item()
    assert error == pytest.approx(expected * 0.01, rel=0.2)


def _shape_like_trained(path: Path) -> None:
    """Weights that make activations of order one, and no bias in the FFN's outputs."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        ffn = "mlp" in name or "intermediate.dense" in name or ".output.dense" in name
        if ffn and "attention" not in name:
            tensors[name] = torch.zeros_like(tensor) if name.endswith("bias") else tensor * 3
    save_file(tensors, path, metadata={"format": "pt"})


def _ffn(model: Any, family: str) -> Any:
    """The FFN of layer 0 without what surrounds it, as a function of [N, H]."""
    layer = {
        "qwen3": lambda: model.model.layers[0].mlp,
        "gpt2": lambda: model.transformer.h[0].mlp,
        "bert": lambda: model.bert.encoder.layer[0],
    }[family]()
    if family != "bert":
        return lambda x: _first(layer(x[None]))
    if hasattr(layer, "moe"):
        return lambda x: _first(layer.moe(x[None]))
    return lambda x: layer.output.dense(layer.intermediate(x))


def _first(output: Any) -> torch.Tensor:
    return (output[0] if isinstance(output, tuple) else output).flatten(0, -2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_report_states_the_noise_that_survived(tmp_path: Path, dtype: str) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3", dtype=dtype)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.001)
    original, written = state(dense), state(tmp_path / "moe")
    ratios = []
    for layer in range(4):
        for part in ("gate", "up", "down"):
            name = f"model.layers.{layer}.mlp.{part}_proj.weight"
            source = original[name].float()
            for expert in range(2):
                copy = written[name.replace("mlp.", f"mlp.experts.{expert}.")].float()
                ratios.append(((copy - source) / source.std()).square().mean())
    measured = torch.stack(ratios).mean().sqrt().item()
    assert report.noise_effective == pytest.approx(measured, rel=0.01)
    if dtype == "float32":
        assert report.noise_effective == pytest.approx(0.001, rel=0.05)
    if dtype == "bfloat16":
        assert report.noise_effective < 0.00095, "in eight bits part of it rounds away"


def test_seeds_and_repeats(bert: Path, tmp_path: Path) -> None:
    moeify.upcycle(bert, tmp_path / "a", num_experts=2)
    moeify.upcycle(bert, tmp_path / "b", num_experts=2, max_shard_size="20kB")
    moeify.upcycle(bert, tmp_path / "c", num_experts=2, seed=1)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    changed = {name for name in a if a[name] != c[name]}
    assert changed == {n for n in a if n.endswith(("up_proj", "down_proj", "router.weight"))}
    moeify.upcycle(bert, tmp_path / "again", num_experts=2)
    assert tree(tmp_path / "a") == tree(tmp_path / "again")


def test_routers_stand_alone_in_the_last_shard(bert: Path, tmp_path: Path) -> None:
    moeify.upcycle(bert, tmp_path / "moe", num_experts=2)
    last = sorted((tmp_path / "moe").glob("*.safetensors"))[-1]
    routers = {name for name in state(tmp_path / "moe") if name.endswith("router.weight")}
    (guard,) = set(load_file(last)) - routers
    assert guard.endswith("encoder.layer.0.intermediate.dense.weight")
    assert routers < set(load_file(last))
    assert len(routers) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen2", dtype="bfloat16")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, dtype=dtype)
    assert {str(t.dtype) for t in state(tmp_path / "moe").values()} == {f"torch.{dtype}"}
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["dtype"] == dtype


def test_record_and_card(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "my-bert"
    shutil.copytree(bert, source)
    card = "---\nlicense: mit\nlanguage: [de]\ntags: [old]\n---\n# Old\n"
    (source / "README.md").write_text(card)
    moeify.upcycle(source, tmp_path / "moe", num_experts=2, seed=5)
    record = json.loads((tmp_path / "moe" / "moeify.json").read_text())
    assert record["source"] == "my-bert"
    (step,) = record["steps"]
    assert step["command"] == "upcycle"
    assert step["options"]["seed"] == 5
    assert step["versions"]["moeify"] == moeify.__version__
    text = (tmp_path / "moe" / "README.md").read_text()
    assert "license: mit" in text
    assert "trust_remote_code=True" in text
    for written in (text, json.dumps(record)):
        assert str(tmp_path) not in written


def test_unknown_tensors_are_carried_and_named(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "odd"
    shutil.copytree(bert, source)
    tensors = load_file(bert / "model.safetensors")
    tensors["extra.thing"] = torch.arange(3)
    save_file(tensors, source / "model.safetensors")
    report = moeify.upcycle(source, tmp_path / "moe", num_experts=2)
    assert "extra.thing" in report.warnings[0]
    assert torch.equal(state(tmp_path / "moe")["extra.thing"], torch.arange(3))


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"num_experts": 1}, "2 to"),
    ({"num_experts": 10**9}, "2 to"),
    ({"num_experts": 4, "top_k": 5}, "top-k must lie between 1 and the number of experts, 4"),
    ({"top_k": 0}, "top-k"),
    ({"noise": -0.1}, "noise must lie"),
    ({"noise": 5.0}, "noise must lie"),
    ({"noise": float("nan")}, "noise must lie"),
    ({"router": "magic"}, "router 'magic'"),
    ({"dtype": "int8"}, "dtype 'int8'"),
    ({"seed": -1}, "seed"),
    ({"layers": "7"}, "out of range"),
    ({"layers": "3-1"}, "out of range"),
    ({"layers": "some"}, "not understood"),
    ({"layers": ""}, "not understood"),
    ({"max_shard_size": "large"}, "no size"),
    ({"revision": "main"}, "only for Hub ids"),
]


@pytest.mark.parametrize(("options", "reason"), BAD_OPTIONS)
def test_bad_options(bert: Path, tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        moeify.upcycle(bert, tmp_path / "out", **options)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def without(folder: Path, *names: str, **replaced: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if k not in names}
    save_file({**tensors, **{k.replace("__", "."): v for k, v in replaced.items()}}, path)


FFN = "bert.encoder.layer.1.intermediate.dense.weight"
BREAK: dict[str, tuple[Any, type[MoeifyError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "holds neither"),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        CheckpointError,
        "no safetensors file",
    ),
    "model type": (lambda f: edit_config(f, model_type="t5"), UnsupportedModelError, "known: bert, camembert, "),
    "no model type": (lambda f: edit_config(f, model_type=...), UnsupportedModelError, "None"),
    "already MoE": (lambda f: edit_config(f, model_type="qwen3_moe"), UnsupportedModelError, "qwen3_moe"),
    "odd class": (lambda f: edit_config(f, architectures=["BertForDancing"]), CheckpointError, "BertForDancing"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 50_000), CheckpointError, "truncated"),
    "missing FFN": (lambda f: without(f, FFN), TensorNotFoundError, "intermediate.dense.weight"),
    "missing head": (lambda f: without(f, "cls.predictions.bias"), TensorNotFoundError, "cls.predictions.bias"),
    "shape": (
        lambda f: edit_config(f, intermediate_size=64),
        CheckpointError,
        r"has shape \[48, 32\], config.json says \[64, 32\]",
    ),
    "odd size": (
        lambda f: edit_config(f, hidden_size="32"),
        CheckpointError,
        "hidden_size must be a positive integer",
    ),
    "NaN": (
        lambda f: without(f, FFN, **{FFN.replace(".", "__"): torch.full((48, 32), torch.nan)}),
        CheckpointError,
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_bad_checkpoints_leave_nothing_behind(bert: Path, tmp_path: Path, case: str) -> None:
    damage, kind, reason = BREAK[case]
    source = tmp_path / "source"
    shutil.copytree(bert, source)
    damage(source)
    before = tree(source)
    with pytest.raises(kind, match=reason) as caught:
        moeify.upcycle(source, tmp_path / "out", num_experts=2)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert tree(source) == before


def test_outputs_that_cannot_be(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        moeify.upcycle(bert, tmp_path / "taken")
    with pytest.raises(OutputError, match="inside one another"):
        moeify.upcycle(bert, bert / "inside")
    assert (tmp_path / "taken" / "mine").read_text() == "precious"
    moeify.upcycle(bert, tmp_path / "taken", num_experts=2, force=True)
    assert not (tmp_path / "taken" / "mine").exists()


def test_no_space(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "huge"
    shutil.copytree(bert, source)
    experts = shutil.disk_usage(tmp_path).free // 50_000_000 + 2
    _stretch(source, width=400_000, experts=int(experts))
    with pytest.raises(OutputError, match="GB free"):
        moeify.upcycle(source, tmp_path / "out", num_experts=min(int(experts), 4096), noise=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["huge"]


def _stretch(folder: Path, width: int, experts: int) -> None:
    """Make the FFN so wide, in a sparse file, that its experts cannot fit the disk."""
    from moeify.checkpoint.header import encode_header

    edit_config(folder, intermediate_size=width)
    shapes = {name: tuple(tensor.shape) for name, tensor in state(folder).items()}
    specs = [(name, "F32", tuple(width if size == 48 else size for size in shape)) for name, shape in shapes.items()]
    header = encode_header(specs)
    size = len(header) + 4 * sum(torch.Size(shape).numel() for _, _, shape in specs)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(size)


def test_the_calibrated_router_ignores_what_all_tokens_share(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "bert", hidden_size=64, num_hidden_layers=2)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=8, noise=0.0)
    tensors, original = state(tmp_path / "moe"), state(dense)
    for layer in range(2):
        prefix = f"bert.encoder.layer.{layer}."
        rows = tensors[prefix + "intermediate.router.weight"].double()
        gain = original[prefix + "attention.output.LayerNorm.weight"].double()
        bias = original[prefix + "attention.output.LayerNorm.bias"].double()
        assert (rows @ bias / bias.norm()).abs().max() < 1e-6
        assert torch.allclose((rows * gain).norm(dim=1), torch.full((8,), 0.65).double(), rtol=1e-5)
