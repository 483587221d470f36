"""Loads and entropies of fitted routers on held-out text, beside three simpler ways to set them.

    python scripts/measure_fit.py [--seeds 10] [--models minilm,gpt2,smollm2]
        [--layers 4] [--draws 10]

Real checkpoints and real text in four domains, 6,144 tokens of each to fit and 3,072 held out, from
other passages, in blocks of 512 or the model's limit; E = 8, K = 2. Every seed draws clusters and
random rows anew, and passages as well up to --draws times. Held-out figures are of the routers'
rows on the inputs that the layers had under the routers that upcycle drew, or under zero routers:
copies compute the dense function whatever the router, so that later layers see the same inputs.
The second table is of domain routers with four experts: held-out tokens whose first expert is
their domain's own. Both are Markdown, on stdout.
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
from moeify.routing.collection import InputReservoir, RoutedTokens, collect
from moeify.routing.data import Blocks, block_length, pack, tokenizer_for
from moeify.routing.fit import domain_router, kmeans_router, mean_entropy
from moeify.routing.loading import load_model
from moeify.routing.statistics import DomainFigures, RoutingStatistics

E, K, DOMAINS = 8, 2, ("english", "python", "german", "logs")
FIT_TOKENS, HELD_OUT_TOKENS = 6_144, 3_072
WAYS = ("N(0, 0.02)", "orthogonal", "k-means", "moeify", "moeify, from zero routers")
LONE = 16  # tokens at the start of a block, of which a causal model knows little


def text(tokenizer, seed: int, seq_len: int) -> tuple[Blocks, Blocks]:
    """Blocks to fit and blocks held out, equally many tokens of each domain."""
    rows = corpora.domains(DOMAINS, max_documents=254, seed=seed)
    tokens = ((tokenizer(row["text"], verbose=False)["input_ids"], row["domain"]) for row in rows)
    blocks = pack(tokens, seq_len, 0)
    fit, held_out = [], []
    for domain in range(len(DOMAINS)):
        found = np.flatnonzero((blocks.domains == domain) & (blocks.lengths == seq_len))
        first, second = HELD_OUT_TOKENS // seq_len, FIT_TOKENS // seq_len
        if len(found) < first + second:
            raise SystemExit(f"too little text of domain {blocks.domain_names[domain]}")
        held_out += [*found[:first]]
        fit += [*found[first : first + second]]
    return blocks.take(fit), blocks.take(held_out)


def rows_of(way: str, inputs: Tensor, seed: int) -> Tensor:
    """Router rows [E, H] set in one of the ways."""
    generator = torch.Generator().manual_seed(seed)
    mean = inputs.mean(0)
    if way.startswith("moeify"):
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


def domain_figures(rows: Tensor, inputs: Tensor, domains: Tensor, top_k: int) -> DomainFigures:
    """What ``moeify inspect`` says of experts and domains, for these rows."""
    logits = inputs @ rows.T
    weights, experts = logits.topk(top_k)
    statistics = RoutingStatistics(len(DOMAINS))
    statistics(
        RoutedTokens(
            layer=0, inputs=inputs, logits=logits, experts=experts, weights=weights.softmax(-1),
            domains=domains,
        )
    )  # fmt: skip
    return statistics.layers[0].domains


class Collected:
    """A model with one kind of routers, and the inputs of its layers on a draw of text."""

    def __init__(self, dense: Path, router: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            moeify.upcycle(dense, Path(scratch, "moe"), num_experts=E, top_k=K, router=router)
            self.model = load_model(Path(scratch, "moe"))
        self.config = self.model.config.to_dict()
        self.seconds: list[float] = []

    def draw(self, parts: tuple[Blocks, Blocks]) -> None:
        """Run both parts of a text through the model."""
        kept = []
        for blocks in parts:
            started = time.process_time()
            kept.append(InputReservoir(blocks.tokens))
            collect(self.model, moe_layout(self.config), blocks, kept[-1])
            self.seconds.append((time.process_time() - started) / blocks.tokens)
        self.fit, self.held_out = kept


def measure(name: str, dense: Path, seeds: int, draws: int) -> list[str]:
    """Print the first table's lines for one model, and return those of the second."""
    tokenizer, results = tokenizer_for(dense), {way: [] for way in WAYS}
    drawn, zeros = Collected(dense, "calibrated"), Collected(dense, "zeros")
    seq_len = block_length(drawn.config, None)
    seconds, own = [], []
    for seed in range(seeds):
        if seed < draws:
            parts = text(tokenizer, seed, seq_len)
            for collected in (drawn, zeros):
                collected.draw(parts)
            own.append(domains_of(drawn, seed, seq_len))
        for way in WAYS:
            collected = zeros if "zero" in way else drawn
            fit, held_out = collected.fit, collected.held_out
            started = time.process_time()
            rows = {layer: rows_of(way, fit.inputs(layer), seed) for layer in fit.layers}
            if way == "moeify":
                seconds.append(time.process_time() - started)
            results[way].append([figures(r, held_out.inputs(n)) for n, r in rows.items()])
    for way, found in results.items():
        array = np.array(found)  # [seeds, layers, 3]
        vio, entropy, least = array[..., 0], array[..., 1], array[..., 2]
        print(
            f"| {name} | {way} | {vio.mean():.2f} | {vio.mean(1).max():.2f} | {vio.max():.2f} |"
            f" {entropy.min():.2f}-{entropy.max():.2f} | {int((least < 0.1).sum())} |",
            flush=True,
        )
    forward = np.mean(drawn.seconds) * len(DOMAINS) * FIT_TOKENS
    print(
        f"{name}: fit {np.mean(seconds):.2f} s of processor time beside {forward:.2f} s of the"
        f" forward pass of {len(DOMAINS) * FIT_TOKENS} tokens, {draws} draws of text",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    array = np.array(own)  # [draws, layers, figures]
    own_first, later, nmi, nmi_both, enrichment = np.moveaxis(array, -1, 0)
    layers = ", ".join(f"{100 * value:.1f}" for value in own_first.mean(0))
    return [
        f"| {name}, blocks of {seq_len} | {layers} | {100 * own_first[:, 1:].min():.1f} |"
        f" {100 * later.mean(0)[1:].min():.1f} | {nmi.mean(0)[1:].min():.2f} |"
        f" {nmi_both.mean(0)[1:].min():.2f} | {enrichment.mean(0)[1:].min():.0f} |"
    ]


def domains_of(collected: Collected, seed: int, seq_len: int) -> list[tuple[float, ...]]:
    """Per layer: own expert first, the same away from block starts, NMI of the first choice, of
    both, and the lowest enrichment of the first choice."""
    fit, held_out, found = collected.fit, collected.held_out, []
    for layer in fit.layers:
        inputs, domains = held_out.inputs(layer), held_out.domains(layer)
        rows = domain_router(
            fit.inputs(layer), fit.domains(layer), len(DOMAINS), K, entropy=0.92, seed=seed
        )
        own = ((inputs @ rows.T).argmax(-1) == domains).float()
        first = domain_figures(rows, inputs, domains, 1)
        both = domain_figures(rows, inputs, domains, K)
        found.append(
            (
                float(own.mean()), float(own.view(-1, seq_len)[:, LONE:].mean()), first.nmi,
                both.nmi, float(first.enrichment.min()),
            )
        )  # fmt: skip
    return found


def main() -> None:
    """Measure the models that are asked for."""
    parser = argparse.ArgumentParser(description="Measure fitted routers on held-out text.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=10, help="how often text is drawn anew")
    parser.add_argument("--models", default="gpt2,minilm,smollm2")
    parser.add_argument("--layers", type=int, default=4, help="layers of SmolLM2 that are used")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | routers | MaxVio mean | worst seed | worst layer | entropy | dead |")
    print("|---|---|---|---|---|---|---|")
    sources = {
        "gpt2": checkpoints.demo_gpt2,
        "minilm": checkpoints.minilm,
        "smollm2": lambda: checkpoints.smollm2(options.layers),
    }
    own = []
    for name in options.models.split(","):
        own += measure(name, sources[name](), options.seeds, options.draws)
    print(
        f"\n| model | own expert first, % by layer | lowest of a draw, from layer 2 | lowest layer"
        f" after the first {LONE} tokens of a block | NMI, first choice | NMI, both | enrichment |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(own))


if __name__ == "__main__":
    main()
