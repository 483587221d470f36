"""Pruning 128 experts to 64 at the width of Qwen3-30B-A3B beside ``cp -r`` and transformers.

python -m benchmarks.prune [--layers 5] [--runs 5] [--folder DIR] [--peers] [--memory]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Measure, measure, median, spread
from moeify.checkpoint.header import encode_header, tensor_nbytes

HIDDEN, WIDTH, EXPERTS, KEEP, VOCABULARY = 2048, 768, 128, 64, 16384
ATTENTION = {"q": (4096, HIDDEN), "k": (512, HIDDEN), "v": (512, HIDDEN), "o": (HIDDEN, 4096)}
SHARD_BYTES = 4_000_000_000
_BLOCK_ELEMENTS = 99_991  # prime, so that the repeats fall differently in every tensor
_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": 6144,
    "moe_intermediate_size": WIDTH,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

Header = list[tuple[str, str, tuple[int, ...]]]


def tensors(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as transformers writes them."""
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for expert, part in itertools.product(range(EXPERTS), ("down", "gate", "up")):
            shape = (HIDDEN, WIDTH) if part == "down" else (WIDTH, HIDDEN)
            yield f"{prefix}mlp.experts.{expert}.{part}_proj.weight", shape
        yield f"{prefix}mlp.gate.weight", (EXPERTS, HIDDEN)
        for part, shape in ATTENTION.items():
            yield f"{prefix}self_attn.{part}_proj.weight", shape
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{prefix}{name}.weight", (128,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (HIDDEN,)


def write_input(folder: Path, layers: int, *, holes: bool = False) -> int:
    """Write the checkpoint in bf16, values at random or left as holes; returns its bytes."""
    folder.mkdir(parents=True)
    shards: list[Header] = [[]]
    room = SHARD_BYTES
    for name, shape in tensors(layers):
        nbytes = tensor_nbytes("BF16", shape)
        if nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append((name, "BF16", shape))
        room -= nbytes
    draw = random.Random(0)
    # The upper half of a float32's bits is a bfloat16.
    values = (struct.pack("<f", draw.gauss(0.0, 0.02))[2:] for _ in range(_BLOCK_ELEMENTS))
    block, weight_map, total = b"".join(values), {}, 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys((name for name, _, _ in shard), file)
        left = sum(tensor_nbytes(dtype, shape) for _, dtype, shape in shard)
        total += left
        with (folder / file).open("wb") as out:
            out.write(encode_header(shard))
            if holes:
                out.truncate(out.tell() + left)
                continue
            while left:
                left -= out.write(block[:left])
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {**_CONFIG, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return total


def prune_command(source: Path, output: Path, by: str) -> list[str]:
    """The command line of one pruning."""
    command = [sys.executable, "-m", "moeify", "prune", str(source), str(output)]
    return [*command, "--keep", str(KEEP), "--by", by, "--quiet"]


def timed(command: list[str], output: Path) -> Measure:
    """One process, whose output is removed."""
    found = measure(command)
    shutil.rmtree(output)
    return found


def compare(source: Path, output: Path, runs: int) -> float:
    """Every command in every round, in an order that turns from round to round.

    Returns the median seconds of ``--by random``.
    """
    flushed = 'cp -r "$0" "$1" && sync -f "$1"'
    work = {
        "moeify prune --by random": prune_command(source, output, "random"),
        "moeify prune --by aimer": prune_command(source, output, "aimer"),
        "cp -r": ["cp", "-r", str(source), str(output)],
        "cp -r, flushed to disk": ["sh", "-c", flushed, str(source), str(output)],
    }
    found: dict[str, list[Measure]] = {name: [] for name in work}
    names = list(work)
    for number in range(runs):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(timed(work[name], output))
    copies = found["cp -r"]
    print(f"{'':28}{'seconds':>26}{'x cp -r, paired':>26}{'peak MiB':>10}")
    for name, measures in found.items():
        ratios = [m.seconds / c.seconds for m, c in zip(measures, copies, strict=True)]
        seconds, peak = spread([m.seconds for m in measures]), max(m.peak_mib for m in measures)
        print(f"{name:28}{seconds:>26}{spread(ratios):>26}{peak:>10.0f}", flush=True)
    return median([m.seconds for m in found["moeify prune --by random"]])


def memory(folder: Path, output: Path, layers: int) -> None:
    """Peak memory against the number of layers, on files of holes, which take no room."""
    for count in (layers, 4 * layers):
        source = folder / f"holes-{count}"
        nbytes = write_input(source, count, holes=True)
        found = timed(prune_command(source, output, "random"), output)
        print(f"{count} layers, {nbytes / 2**30:.1f} GiB: peak {found.peak_mib:.0f} MiB", flush=True)
        shutil.rmtree(source)


def peer(source: Path, output: Path, own: float) -> None:
    """Load, slice and save with transformers: needs twice the input in memory."""
    command = [sys.executable, "-m", "benchmarks.prune", "--slice", str(source), str(output)]
    found = timed(command, output)
    print(
        f"transformers, load, slice, save: {found.seconds:.1f} s, {found.seconds / own:.1f} x"
        f" moeify, peak {found.peak_mib / 1024:.1f} GiB",
        flush=True,
    )


def _load_slice_save(source: str, output: str) -> None:
    import torch
    from transformers import Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM.from_pretrained(source, dtype="auto")
    for layer in model.model.layers:
        experts, router = layer.mlp.experts, layer.mlp.gate
        for owner, name in ((experts, "gate_up_proj"), (experts, "down_proj"), (router, "weight")):
            setattr(owner, name, torch.nn.Parameter(getattr(owner, name).data[:KEEP].clone()))
    model.config.num_experts = KEEP
    model.save_pretrained(output)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where there is room for twice the input")
    parser.add_argument("--memory", action="store_true", help="peak memory at 4 x the layers too")
    parser.add_argument("--peers", action="store_true", help="transformers too")
    parser.add_argument("--slice", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.slice:
        _load_slice_save(*options.slice)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, output = Path(name, "moe"), Path(name, "output")
        nbytes = write_input(source, options.layers)
        print(
            f"{options.layers} layers of {EXPERTS} experts, {nbytes / 2**30:.1f} GiB of bf16,"
            f" {os.cpu_count()} cores, {options.runs} runs",
            flush=True,
        )
        own = compare(source, output, options.runs)
        if options.peers:
            peer(source, output, own)
        if options.memory:
            shutil.rmtree(source)
            memory(Path(name), output, options.layers)


if __name__ == "__main__":
    main()
