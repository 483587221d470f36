"""What inspect costs: headers of a large checkpoint, weights of 5 GB, routing beside a plain pass.

Run from the repository: ``python -m benchmarks.inspect_costs``. Every figure is a process of its
own; times are the best of three.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from moeify.checkpoint.header import encode_header, tensor_nbytes
from tests.inspection.sparse_checkpoint import write_sparse

_RUN = """
import sys, time
from moeify.inspection.inspect import inspect
started = time.perf_counter()
report = inspect(sys.argv[1], weights=sys.argv[2] == "weights")
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)
print(seconds, peak / 1024)
"""


def headers() -> None:
    """The command itself, interpreter included."""
    with tempfile.TemporaryDirectory() as folder:
        write_sparse(Path(folder))
        command = [sys.executable, "-m", "moeify", "inspect", folder]
        best = min(_timed(command) for _ in range(3))
        _, peak = _measured(folder, "headers")
    print(f"headers, 18,867 tensors in 16 shards: {best:.2f} s CPU, {peak:.0f} MiB peak")


def _measured(folder: str, depth: str) -> tuple[float, float]:
    """Seconds without the interpreter's start, and peak MiB with it."""
    command = [sys.executable, "-c", _RUN, folder, depth]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def _timed(command: list[str]) -> float:
    """CPU seconds, which other work on the machine disturbs least."""
    before = os.times()
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def weights(layers: int, shards: int) -> None:
    """Random experts at Qwen2.5-0.5B width, 8 of them."""
    hidden, ffn, experts = 896, 4864, 8
    shapes = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
    listed = []
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        listed.append((f"{prefix}mlp.gate.weight", "BF16", (experts, hidden)))
        listed.append((f"{prefix}post_attention_layernorm.weight", "BF16", (hidden,)))
        listed += [
            (f"{prefix}mlp.experts.{e}.{name}.weight", "BF16", shape)
            for e in range(experts)
            for name, shape in shapes.items()
        ]
    noise = np.random.default_rng(0).standard_normal(1 << 24).astype("f4").view("u4") >> 16
    noise = noise.astype("u2").tobytes()
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "moe_intermediate_size": ffn,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 14,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        size, weight_map = -(-len(listed) // shards), {}
        for number in range(shards):
            part = listed[number * size : (number + 1) * size]
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            with open(folder / file, "wb") as target:
                target.write(encode_header(part))
                left = sum(tensor_nbytes(dtype, shape) for _, dtype, shape in part)
                while left:
                    left -= target.write(noise[: min(left, len(noise))])
            weight_map |= {entry[0]: file for entry in part}
        index = {"weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        seconds, peak = _measured(name, "weights")
        total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    size_text = f"{total / 1e9:.1f} GB in {shards} shards"
    print(f"--weights, {size_text}: {seconds:.0f} s, {peak:.0f} MiB peak")


def routing() -> None:
    """A pass that records routing beside one that does not: same model, same text."""
    import torch

    from moeify.families.registry import moe_layout
    from moeify.routing.collection import collect
    from moeify.routing.data import pack
    from moeify.routing.loaded import base_model
    from moeify.routing.loading import load_model
    from moeify.routing.passes import WholeModel
    from moeify.routing.statistics import RoutingStatistics
    from moeify.upcycling.upcycle import upcycle
    from tests.real.checkpoints import smollm2

    with tempfile.TemporaryDirectory() as name:
        upcycle(smollm2(num_layers=4), Path(name) / "moe", num_experts=8)
        model = load_model(Path(name) / "moe")
    layout = moe_layout(model.config.to_dict())
    tokens = np.random.default_rng(0).integers(0, 49152, 4096).tolist()
    blocks = pack([(tokens, None)], 512, 0)

    def plain() -> None:
        with torch.no_grad():
            for inputs, _ in blocks.batches(8):
                base_model(model)(**inputs, use_cache=False)

    def recorded() -> None:
        collect(WholeModel(model), layout, blocks, RoutingStatistics(), batch_size=8)

    plain(), recorded()
    pairs = []
    for _ in range(5):
        times = []
        for run in (plain, recorded):
            started = time.process_time()
            run()
            times.append(time.process_time() - started)
        pairs.append(times[1] / times[0])
    ratio = sorted(pairs)[2]
    print(f"routing of 4,096 tokens: {ratio:.3f} x the CPU time of a plain pass (median of 5)")


if __name__ == "__main__":
    headers()
    routing()
    weights(layers=24, shards=1)
    weights(layers=24, shards=8)
