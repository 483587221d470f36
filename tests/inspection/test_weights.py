"""Depth 2: figures of routers and experts against NumPy on whole tensors, and their memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.errors import ConfigError
from moeify.inspection import weights
from moeify.inspection.inspect import inspect
from moeify.upcycling.upcycle import upcycle
from tests.families.published_models import BY_CLASS, save, tiny
from tests.real.checkpoints import demo_gpt2, minilm


@pytest.mark.parametrize("block", [64, 32 << 20])
def test_figures_equal_numpy_on_whole_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(weights, "_BLOCK_BYTES", block)
    folder = save(tiny("qwen3_moe", tied=False), tmp_path)
    stored = {n: t.double().numpy() for n, t in load_file(folder / "model.safetensors").items()}
    for layer in inspect(folder, weights=True).layers:
        prefix = f"model.layers.{layer.layer}.mlp."
        rows = stored[prefix + "gate.weight"]
        norms = np.linalg.norm(rows, axis=1)
        unit = rows / norms[:, None]
        off = ~np.eye(4, dtype=bool)
        found = layer.weights
        assert np.allclose(found["router_norm"]["values"], norms, rtol=1e-5)
        assert np.isclose(found["router_cosine"]["mean"], (unit @ unit.T)[off].mean(), rtol=1e-4)
        flat = np.stack(
            [
                np.concatenate(
                    [stored[f"{prefix}experts.{e}.{p}_proj.weight"].ravel() for p in ("gate", "up", "down")]
                )
                for e in range(4)
            ]
        )
        distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
        scale = np.sqrt((flat**2).sum(1).mean())
        assert np.isclose(found["expert_distance"]["mean"], distances[off].mean() / scale, rtol=1e-5)
        assert np.isclose(found["expert_distance"]["min"], distances[off].min() / scale, rtol=1e-5)
        assert (found["duplicates"], found["nonfinite"]) == ([], 0)


@pytest.mark.parametrize("model_type", BY_CLASS)
def test_every_layout_can_be_measured(model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type, tied=False)
    report = inspect(save(model, tmp_path), weights=True)
    for layer in report.layers:
        assert layer.weights["expert_distance"]["min"] > 0.1
        assert layer.weights["nonfinite"] == 0
    assert report.running is not None
    assert report.running.bfloat16 == 2 * report.params_total > report.running.int8 > report.running.nf4
    assert report.running.kv_cache == cache_of_a_thousand_tokens(model)


def cache_of_a_thousand_tokens(model: Any) -> int | None:
    """What four tokens leave in the cache, in bfloat16 and times 250; None for encoders."""
    with torch.no_grad():
        out = model.eval()(input_ids=torch.arange(3, 7)[None])
    if "past_key_values" not in out:
        return None
    held = [
        part
        for layer in out.past_key_values.layers
        for part in (getattr(layer, "keys", 0), getattr(layer, "values", 0))
    ]
    return 250 * 2 * sum(part.numel() for part in held if isinstance(part, torch.Tensor))


def test_copies_are_named_and_noise_is_measured(tmp_path: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "copies", num_experts=4, noise=0.0)
    report = inspect(tmp_path / "copies", weights=True, reference=str(demo_gpt2()))
    assert all(layer.weights["duplicates"] == [[0, 1, 2, 3]] for layer in report.layers)
    assert all(layer.weights["dense_distance"]["max"] == 0 for layer in report.layers)
    assert "exact copies" in report.notes[0]
    upcycle(demo_gpt2(), tmp_path / "noisy", num_experts=4, noise=0.02)
    for layer in inspect(tmp_path / "noisy", weights=True, reference=str(demo_gpt2())).layers:
        assert layer.weights["duplicates"] == []
        assert layer.weights["dense_distance"]["mean"] == pytest.approx(0.02, rel=0.1)
        assert layer.weights["expert_distance"]["mean"] == pytest.approx(0.02 * 2**0.5, rel=0.1)


def test_zero_routers_have_no_direction(tmp_path: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4, router="zeros")
    layer = inspect(tmp_path / "moe", weights=True).layers[0].weights
    assert (layer["router_norm"]["max"], layer["router_cosine"]) == (0, None)


def test_nan_and_infinity_are_counted(tmp_path: Path) -> None:
    folder = save(tiny("qwen3_moe", tied=False), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.experts.1.up_proj.weight"][0, :3] = torch.nan
    tensors["model.layers.3.mlp.gate.weight"][1, 1] = torch.inf
    save_file(tensors, folder / "model.safetensors")
    report = inspect(folder, weights=True)
    assert {layer.layer: layer.weights["nonfinite"] for layer in report.layers} == {0: 0, 2: 3, 3: 1}
    assert [problem.kind for problem in report.problems] == ["nonfinite"]
    json.dumps(report.to_dict(), allow_nan=False)


def test_truncated_shard_is_a_problem_of_its_layers(tmp_path: Path) -> None:
    folder = save(tiny("qwen3_moe", tied=False), tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20_000])
    kinds = {problem.kind for problem in inspect(folder, weights=True).problems}
    assert kinds == {"damaged_shard", "unreadable_weights"}


def test_dense_of_another_family_is_refused(tmp_path: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4)
    with pytest.raises(ConfigError, match="do not stem from one"):
        inspect(tmp_path / "moe", weights=True, reference=str(minilm()))


def test_memory_does_not_grow_with_layer_or_shard(tmp_path: Path) -> None:
    """One shard of 0.5 GB with layers of 67 MB a projection: 300 MiB and one such layer at most."""
    from moeify.checkpoint.header import encode_header, tensor_nbytes

    hidden, ffn, experts, layers = 1024, 4096, 8, 2
    shapes = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
    listed: list[tuple[str, str, tuple[int, ...]]] = []
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        listed.append((f"{prefix}mlp.gate.weight", "BF16", (experts, hidden)))
        listed.append((f"{prefix}post_attention_layernorm.weight", "BF16", (hidden,)))
        listed += [
            (f"{prefix}mlp.experts.{e}.{name}.weight", "BF16", shape)
            for e in range(experts)
            for name, shape in shapes.items()
        ]
    header = encode_header(listed)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor_nbytes(d, s) for _, d, s in listed))
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "moe_intermediate_size": ffn,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import sys; from moeify.inspection.inspect import inspect;"
        " report = inspect(sys.argv[1], weights=True); assert 'torch' not in sys.modules;"
        " assert report.layers[1].weights['duplicates'] == [list(range(8))];"
        " print(next(int(line.split()[1]) for line in open('/proc/self/status') if 'HWM' in line))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) // 1024 <= 240
