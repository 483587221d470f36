"""Loads and entropies of fitted routers on held-out text, beside three simpler ways to set them.

    python scripts/measure_fit.py [--seeds 10] [--models minilm,gpt2,smollm2]
        [--layers 4] [--draws 10]

Real checkpoints and real text in four domains, 6,000 tokens of each to fit and 3,000 held out, from
other passages; E = 8, K = 2. Every seed draws clusters and random rows anew, and passages
as well up to --draws times. Held-out
figures are of the routers' rows on the inputs that the layers had under random routing: copies
compute the dense function whatever the router, so that later layers see the same inputs. The table
is Markdown, on stdout.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real import checkpoints, corpora

import moeify
from moeify.families.registry import moe_layout
from moeify.routing.collection import InputReservoir, collect
from moeify.routing.data import Blocks, pack, tokenizer_for
from moeify.routing.loading import load_model
from moeify.warming.fit import domain_router, kmeans_router, mean_entropy

E, K, DOMAINS = 8, 2, ("english", "python", "german", "logs")
FIT_TOKENS, HELD_OUT_TOKENS, SEQ_LEN = 6_000, 3_000, 128
WAYS = ("N(0, 0.02)", "orthogonal", "k-means", "moeify")


def text(tokenizer, seed: int) -> tuple[Blocks, Blocks]:
    """Blocks to fit and blocks held out, equally many tokens of each domain."""
    rows = corpora.domains(DOMAINS, max_documents=254, seed=seed)
    tokens = ((tokenizer(row["text"])["input_ids"], row["domain"]) for row in rows)
    blocks = pack(tokens, SEQ_LEN, 0)
    fit, held_out = [], []
    for domain in range(len(DOMAINS)):
        found = np.flatnonzero(blocks.domains == domain)
        first, second = HELD_OUT_TOKENS // SEQ_LEN, FIT_TOKENS // SEQ_LEN
        held_out += [*found[:first]]
        fit += [*found[first : first + second]]
    return blocks.take(fit), blocks.take(held_out)


def rows_of(way: str, inputs: Tensor, seed: int) -> Tensor:
    """Router rows [E, H] set in one of the ways."""
    generator = torch.Generator().manual_seed(seed)
    mean = inputs.mean(0)
    if way == "moeify":
        return kmeans_router(inputs, E, K, entropy=0.92, seed=seed)
    if way == "k-means":
        rows = plain_kmeans(inputs - mean, generator)
    else:
        rows = torch.randn(E, inputs.shape[1], generator=generator) * 0.02
    if way == "N(0, 0.02)":
        return rows
    common = normalize(mean, dim=0)
    rows = rows - torch.outer(rows @ common, common)
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = (low * high) ** 0.5
        flat = mean_entropy(inputs[:4096] @ rows.T * middle) > 0.92
        low, high = (middle, high) if flat else (low, middle)
    return rows * low


def plain_kmeans(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Spherical k-means with Sinkhorn assignment, as the prototype had it."""
    points = normalize(rows, dim=-1)
    centres = points[torch.randperm(len(points), generator=generator)[:E]]
    for _ in range(12):
        plan = (points @ centres.T / 0.05).double().exp()
        for _ in range(20):
            plan /= plan.sum(0)
            plan /= plan.sum(1, keepdim=True)
        centres = normalize((plan.T.float() @ points), dim=-1)
    return centres


def figures(rows: Tensor, inputs: Tensor) -> tuple[float, float, float]:
    """MaxVio, mean normalised entropy, and the lowest load relative to the fair share."""
    logits = inputs @ rows.T
    counts = torch.bincount(logits.topk(K, dim=-1).indices.flatten(), minlength=E).float()
    load = counts / counts.mean()
    return float(load.max()) - 1, mean_entropy(logits), float(load.min())


def own_fraction(rows: Tensor, inputs: Tensor, domains: Tensor) -> float:
    """Fraction of tokens whose first expert is their domain's."""
    return float(((inputs @ rows.T).argmax(-1) == domains).float().mean())


def measure(name: str, dense: Path, seeds: int, draws: int) -> None:
    """Print the table's lines for one model."""
    results: dict[str, list] = {way: [] for way in WAYS}
    seconds, forward, own = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        moeify.upcycle(dense, Path(scratch, "moe"), num_experts=E, top_k=K)
        model, tokenizer = load_model(Path(scratch, "moe")), tokenizer_for(dense)
    layout = moe_layout(model.config.to_dict())
    for seed in range(seeds):
        if seed < draws:
            reservoirs = []
        for blocks in text(tokenizer, seed) if seed < draws else ():
            started = time.perf_counter()
            reservoirs.append(InputReservoir(30_000))
            collect(model, layout, blocks, reservoirs[-1])
            forward.append((time.perf_counter() - started) / blocks.tokens)
        fit, held_out = reservoirs
        for way in WAYS:
            started = time.perf_counter()
            rows = {layer: rows_of(way, fit.inputs(layer), seed) for layer in fit.layers}
            if way == "moeify":
                seconds.append(time.perf_counter() - started)
            results[way].append([figures(r, held_out.inputs(n)) for n, r in rows.items()])
        own.append([
            own_fraction(
                domain_router(fit.inputs(n), fit.domains(n), 4, K, entropy=0.92, seed=seed),
                held_out.inputs(n), held_out.domains(n),
            )
            for n in fit.layers
        ])  # fmt: skip
    for way, found in results.items():
        array = np.array(found)  # [seeds, layers, 3]
        vio, entropy, least = array[..., 0], array[..., 1], array[..., 2]
        print(
            f"| {name} | {way} | {vio.mean():.2f} | {vio.mean(1).max():.2f} | {vio.max():.2f} |"
            f" {entropy.min():.2f}-{entropy.max():.2f} | {int((least < 0.1).sum())} |",
            flush=True,
        )
    ratio = np.mean(seconds) / (np.mean(forward) * 4 * FIT_TOKENS)
    layers = ", ".join(f"{100 * value:.1f}" for value in np.array(own).mean(0))
    print(
        f"{name}: fit {np.mean(seconds):.2f} s = {ratio:.2f} x the forward pass of 24,000 tokens;"
        f" own domain first, 4 experts, by layer: {layers} % (lowest seed"
        f" {100 * np.array(own)[:, 1:].min():.1f} %)\n",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def main() -> None:
    """Measure the models that are asked for."""
    parser = argparse.ArgumentParser(description="Measure fitted routers on held-out text.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=10, help="how often text is drawn anew")
    parser.add_argument("--models", default="gpt2,minilm,smollm2")
    parser.add_argument("--layers", type=int, default=4, help="layers of SmolLM2 that are used")
    options = parser.parse_args()
    print("| model | routers | MaxVio mean | worst seed | worst layer | entropy | dead |")
    print("|---|---|---|---|---|---|---|")
    sources = {
        "gpt2": checkpoints.demo_gpt2,
        "minilm": checkpoints.minilm,
        "smollm2": lambda: checkpoints.smollm2(options.layers),
    }
    for name in options.models.split(","):
        measure(name, sources[name](), options.seeds, options.draws)


if __name__ == "__main__":
    main()
