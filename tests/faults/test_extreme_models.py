"""Extreme but legal: one layer, 512 experts, all of them at once, odd widths, 20 GB, odd dtypes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.checkpoint.header import encode_header, read_header, tensor_nbytes
from moeify.upcycling.upcycle import upcycle
from moeify.upcycling.verify import verify
from tests.faults.in_process import moeify
from tests.inspection.sparse_checkpoint import CONFIG, VOCABULARY, tensors
from tests.tiny import LM_HEADS, save_tiny, state

ODD: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 33, "num_attention_heads": 3, "intermediate_size": 47},
    "gpt2": {"n_embd": 33, "n_head": 3, "n_inner": 47},
    "qwen2": {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 47},
    "qwen3": {
        "hidden_size": 33,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 47,
        "head_dim": 10,
    },
}
ONE_LAYER = {"gpt2": {"n_layer": 1}}


@pytest.mark.parametrize("family", LM_HEADS)
@pytest.mark.parametrize("what", ["one layer", "odd widths", "every expert"])
def test_extremes_stay_exact(tmp_path: Path, family: str, what: str) -> None:
    options: dict[str, Any] = {}
    experts, top_k = (3, 3) if what == "every expert" else (4, 2)
    if what == "one layer":
        options = ONE_LAYER.get(family, {"num_hidden_layers": 1})
    elif what == "odd widths":
        options = ODD[family]
    dense = save_tiny(tmp_path / "dense", family, **options)
    upcycle(dense, tmp_path / "moe", num_experts=experts, top_k=top_k, noise=0.0)
    report = verify(dense, tmp_path / "moe", seq_len=8)
    assert report.relative_diff <= 1e-6 and report.top1_agreement == 1.0
    assert moeify("inspect", tmp_path / "moe", "--weights").code in (0, 3)  # copies are a finding
    done = moeify("prune", tmp_path / "moe", tmp_path / "cut", "--keep", top_k, "--by", "random")
    assert done.code == (1 if experts == top_k else 0), done.text
    assert moeify("extract", tmp_path / "moe", tmp_path / "one", "--expert", 0).code == 0
    assert verify(dense, tmp_path / "one", seq_len=8).bit_exact


def test_512_experts(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3", num_hidden_layers=2)
    upcycle(dense, tmp_path / "moe", num_experts=512, top_k=512, noise=0.0)
    assert verify(dense, tmp_path / "moe", seq_len=4, batch=1).relative_diff <= 1e-6
    assert moeify("attach", tmp_path / "moe", tmp_path / "again", "--top-k", 8).code == 0
    done = moeify("prune", tmp_path / "again", tmp_path / "cut", "--keep", 9, "--by", "random")
    assert done.code == 0, done.text
    assert len(state(tmp_path / "cut")) < len(state(tmp_path / "moe")) // 20
    done = moeify("upcycle", dense, tmp_path / "x", "--experts", 8, "--top-k", 9)
    assert done.code == 1 and "9" in done.err


@pytest.mark.parametrize("noise", [0.01, 0.0])
def test_what_overflows_float16_is_counted(tmp_path: Path, noise: float) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3", num_hidden_layers=1)
    path = dense / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = torch.full_like(weights[name], 60000.0)
    weights[name][-1, -5:] = 65500.0 if noise else 70000.0  # far from what is sampled
    weights[name][0] = -weights[name][0] / 3
    save_file(weights, path)
    report = upcycle(dense, tmp_path / "moe", num_experts=4, noise=noise, dtype="float16")
    written = sum(int((~torch.isfinite(t)).sum()) for t in state(tmp_path / "moe").values())
    assert written > 0
    assert any(w.startswith(f"{written} weights are beyond") for w in report.warnings)


def test_other_dtypes_elsewhere_are_copied_untouched(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    path = dense / "model.safetensors"
    weights = load_file(path)
    extra = {
        "double": torch.tensor([1e-300, torch.pi, float("nan"), float("inf")], dtype=torch.float64),
        "byte8": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "byte52": torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2),
        "flags": torch.tensor([True, False]),
        "long": torch.tensor([-(2**63), 2**63 - 1]),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
        "none": torch.zeros(0, 4),
    }
    save_file(weights | extra, path)
    upcycle(dense, tmp_path / "moe", num_experts=4)
    source = read_header(path)[0]
    held = {n: t for p in (tmp_path / "moe").glob("*.safetensors") for n, t in read_header(p)[0].items()}
    for name in extra:
        copy = held[name if name in held else f"transformer.{name}"]
        assert (copy.dtype, copy.shape) == (source[name].dtype, source[name].shape)
        assert _raw(copy) == _raw(source[name])


def _raw(tensor: Any) -> bytes:
    with open(tensor.path, "rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.nbytes)


LAYERS = 18
_PEAK = (
    "import sys; from moeify.cli.app import app\n"
    "try: app(sys.argv[1:])\n"
    "except SystemExit as left: assert left.code in (0, None, 3), left.code\n"
    "status = open('/proc/self/status').read()\n"
    "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 GB of experts of Qwen3-30B-A3B in one file that is all hole but for its header."""
    folder = tmp_path_factory.mktemp("huge")
    less = {4096: 256, VOCABULARY: 1000}  # what is copied whole must not fill the disk
    listed = [
        (name, dtype, tuple(less.get(size, size) for size in shape))
        for name, dtype, shape in tensors()
        if not (name.startswith("model.layers.") and int(name.split(".")[2]) >= LAYERS)
    ]
    header = encode_header(listed)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        os.truncate(file.fileno(), len(header) + sum(tensor_nbytes(d, s) for _, d, s in listed))
    config = {
        **CONFIG,
        "num_hidden_layers": LAYERS,
        "num_experts_per_tok": 1,
        "num_attention_heads": 2,
        "vocab_size": 1000,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("command", "limit"), [(["inspect"], 60), (["prune", "--keep", "1", "--by", "random"], 100)])
def test_20_gigabytes_in_little_memory(huge: Path, tmp_path: Path, command: list[str], limit: int) -> None:
    assert (huge / "model.safetensors").stat().st_size > 20e9
    assert (huge / "model.safetensors").stat().st_blocks * 512 < 10e6
    line = [command[0], str(huge), *([str(tmp_path / "out")] if len(command) > 1 else []), *command[1:]]
    done = subprocess.run([sys.executable, "-c", _PEAK, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) <= limit
