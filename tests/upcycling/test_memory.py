"""Memory stays flat and torch stays out, measured on whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moeify.checkpoint.header import encode_header

pytestmark = pytest.mark.slow

MEASURE = """
import json, sys
import moeify
report = moeify.upcycle(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
status = open("/proc/self/status").read()  # unlike ru_maxrss it knows nothing of the parent
print(json.dumps({
    "peak": int(status.split("VmHWM:")[1].split()[0]) / 1024,
    "torch": "torch" in sys.modules,
    "bytes": report.bytes_written,
}))
"""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of 4 layers whose FFN tensors hold 8 MB each, in bfloat16."""
    folder = tmp_path_factory.mktemp("qwen")
    hidden, ffn, vocab, layers = 1024, 4096, 4096, 4
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", 1024), ("k", 256), ("v", 256)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, 1024)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (ffn, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (ffn, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(encode_header((name, "BF16", shape) for name, shape in shapes.items()))
        for shape in shapes.values():
            values = rng.standard_normal(int(np.prod(shape)), dtype=np.float32) * 0.02
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return folder


def measure(source: Path, output: Path, **options: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(output), json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_memory_does_not_grow_with_experts_or_shards(qwen: Path, tmp_path: Path, noise: float) -> None:
    few = measure(qwen, tmp_path / "few", num_experts=2, noise=noise)
    many = measure(qwen, tmp_path / "many", num_experts=8, noise=noise)
    small = measure(qwen, tmp_path / "small", num_experts=8, noise=noise, max_shard_size="100MB")
    assert many["bytes"] > 3 * few["bytes"] > 600e6
    assert not any(run["torch"] for run in (few, many, small))
    assert max(run["peak"] for run in (few, many, small)) <= (100 if noise == 0 else 150)
    for run in (many, small):
        assert run["peak"] <= few["peak"] + 16  # two tensors that meet in one moment; six experts hold 576


def sources(base: Path, folder: Path) -> list[str]:
    """Eight checkpoints of the shape of ``base``, in folders of their own."""
    for number in range(8):
        place = folder / f"source{number}"
        place.mkdir()
        for name in ("config.json", "model.safetensors"):
            os.link(base / name, place / name)
    return [str(folder / f"source{number}") for number in range(8)]


def adapter(base: Path, folder: Path, rank: int = 32) -> str:
    """A LoRA adapter of every FFN matrix."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(4):
        for name, width, height in (("gate", 1024, 4096), ("up", 1024, 4096), ("down", 4096, 1024)):
            prefix = f"base_model.model.model.layers.{layer}.mlp.{name}_proj"
            shapes[f"{prefix}.lora_A.weight"] = (rank, width)
            shapes[f"{prefix}.lora_B.weight"] = (height, rank)
    rng = np.random.default_rng(1)
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(encode_header((name, "F32", shape) for name, shape in shapes.items()))
        for shape in shapes.values():
            file.write(rng.standard_normal(int(np.prod(shape)), dtype=np.float32).tobytes())
    return str(folder)


@pytest.mark.parametrize("rest", ["base", "mean"])
def test_memory_does_not_grow_with_sources(qwen: Path, tmp_path: Path, rest: str) -> None:
    eight = sources(qwen, tmp_path)
    options = {"num_experts": 8, "noise": 0.0, "rest": rest}
    one = measure(qwen, tmp_path / "one", **options, experts_from=eight[:1])
    many = measure(qwen, tmp_path / "many", **options, experts_from=eight)
    assert many["bytes"] == one["bytes"] > 800e6
    assert not many["torch"]
    assert many["peak"] <= max(1.1 * one["peak"], one["peak"] + 5)
    assert many["peak"] <= (100 if rest == "base" else 150)


def test_adapters_are_merged_in_little_memory(qwen: Path, tmp_path: Path) -> None:
    lora = [adapter(qwen, tmp_path / f"lora{number}") for number in range(4)]
    run = measure(qwen, tmp_path / "moe", experts_from=lora, noise=0.0)
    assert run["bytes"] > 400e6
    assert not run["torch"]
    assert run["peak"] <= 150


def test_a_dry_run_reads_little(qwen: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, moeify\n"
        "read = lambda: int(open('/proc/self/io').read().split('rchar: ')[1].split()[0])\n"
        "before = read()\n"
        "moeify.upcycle(sys.argv[1], sys.argv[2], dry_run=True)\n"
        "assert 'torch' not in sys.modules\n"
        "print(read() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(qwen), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    weights = (qwen / "model.safetensors").stat().st_size
    assert int(done.stdout) < 10_000_000 < weights / 10
