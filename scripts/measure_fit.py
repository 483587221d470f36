"""Loads and entropies of fitted routers on held-out text, beside three simpler ways to set them.

    python scripts/measure_fit.py [--seeds 10] [--models minilm,gpt2,smollm2]
        [--layers 4] [--draws 10] [--keep FOLDER]
        [--routers calibrated,zeros] [--fit-tokens 24576]

Real checkpoints and real text in four domains, as many tokens of each, --fit-tokens in all to fit
and 12,288 held out, from other passages, in blocks of 512 or the model's limit; E = 8, K = 2. Every
seed draws clusters and random rows anew, and passages as well up to --draws times. Held-out figures
are of the routers' rows on the inputs that the layers had under the routers that upcycle drew, or
under zero routers: copies compute the dense function whatever the router, so that later layers see
the same inputs. --keep keeps the inputs (five gigabytes for all of SmolLM2), so that a run can be
repeated without the model. The second table is of domain routers with four experts: held-out tokens
whose first expert is their domain's own, and their MaxVio. Both are Markdown, on stdout.
"""

import argparse
import json
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
from moeify.routing.passes import WholeModel
from moeify.routing.statistics import DomainFigures, RoutingStatistics

E, K, DOMAINS = 8, 2, ("english", "python", "german", "logs")
FIT_TOKENS, HELD_OUT_TOKENS = 24_576, 3_072  # of all domains, of each domain
WAYS = ("N(0, 0.02)", "orthogonal", "k-means", "moeify", "moeify, from zero routers")
LONE = 16  # tokens at the start of a block, of which a causal model knows little


def text(tokenizer, seed: int, seq_len: int, fit_tokens: int) -> tuple[Blocks, Blocks]:
    """Blocks to fit and blocks held out, equally many tokens of each domain."""
    rows = corpora.domains(DOMAINS, max_documents=254, seed=seed)
    tokens = ((tokenizer(row["text"], verbose=False)["input_ids"], row["domain"]) for row in rows)
    blocks = pack(tokens, seq_len, 0)
    fit, held_out = [], []
    for domain in range(len(DOMAINS)):
        found = np.flatnonzero((blocks.domains == domain) & (blocks.lengths == seq_len))
        first, second = HELD_OUT_TOKENS // seq_len, fit_tokens // len(DOMAINS) // seq_len
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
        token = torch.ones(len(points), dtype=torch.double)
        for _ in range(20):
            cluster = 1 / (plan.T @ token)
            token = 1 / (plan @ cluster)
        plan = plan * cluster * token[:, None]
        centres = normalize((plan.T.float() @ points), dim=-1)
    return centres


def figures(rows: Tensor, inputs: Tensor) -> tuple[float, float, float]:
    """MaxVio, mean normalised entropy, and the lowest load relative to the fair share."""
    logits = inputs @ rows.T
    counts = torch.bincount(logits.topk(K, dim=-1).indices.flatten(), minlength=len(rows)).float()
    load = counts / counts.mean()
    return float(load.max()) - 1, mean_entropy(logits), float(load.min())


def domain_figures(rows: Tensor, inputs: Tensor, domains: Tensor, top_k: int) -> DomainFigures:
    """What ``moeify inspect`` says of experts and domains, for these rows."""
    logits = inputs @ rows.T
    weights, experts = logits.topk(top_k)
    statistics = RoutingStatistics(len(DOMAINS))
    statistics(
        RoutedTokens(
            layer=0, inputs=inputs, logits=logits, experts=experts, weights=weights.softmax(-1), domains=domains
        )
    )
    return statistics.layers[0].domains


class Inputs:
    """What the layers of a model read on one draw of text, kept in files, layer by layer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layers = folder, sorted(int(path.stem) for path in folder.glob("*.npz"))
        self.seconds: float = json.loads((folder / "seconds.json").read_text())

    def layer(self, layer: int) -> dict[str, Tensor]:
        """``fit`` and ``held_out`` [T, H], ``fit_domains`` and ``held_out_domains`` [T]."""
        with np.load(self.folder / f"{layer}.npz") as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}


def collected(dense: Path, router: str, parts: tuple[Blocks, Blocks], folder: Path) -> Inputs:
    """The inputs of every layer under one kind of routers: read where they are, or collected."""
    if folder.is_dir():
        return Inputs(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        moeify.upcycle(dense, Path(scratch, "moe"), num_experts=E, top_k=K, router=router)
        model = load_model(Path(scratch, "moe"))
    layout, kept, seconds = moe_layout(model.config.to_dict()), [], []
    for blocks in parts:
        started = time.process_time()
        kept.append(InputReservoir(blocks.tokens))
        collect(WholeModel(model), layout, blocks, kept[-1])
        seconds.append(time.process_time() - started)
    draft = folder.with_name(f"{folder.name}-draft")
    draft.mkdir()
    fit, held_out = kept
    for layer in fit.layers:
        np.savez(
            draft / f"{layer}.npz",
            fit=fit.inputs(layer),
            fit_domains=fit.domains(layer),
            held_out=held_out.inputs(layer),
            held_out_domains=held_out.domains(layer),
        )
    (draft / "seconds.json").write_text(json.dumps(seconds[0]))
    draft.rename(folder)
    return Inputs(folder)


def measure(
    name: str, dense: Path, seeds: int, draws: int, keep: Path, routers: list[str], fit_tokens: int
) -> list[str]:
    """Print the first table's lines for one model, and return those of the second."""
    ways = {kind: [way for way in WAYS if ("zero" in way) == (kind == "zeros")] for kind in routers}
    results = {way: [[] for _ in range(seeds)] for kind in routers for way in ways[kind]}
    tokenizer = tokenizer_for(dense)
    seq_len = block_length(json.loads((dense / "config.json").read_text()), None)
    seconds, forward, own = [0.0] * seeds, [], []
    for draw in range(draws):
        parts = text(tokenizer, draw, seq_len, fit_tokens)
        for router in routers:
            folder = keep / f"{name}-{router}-{draw}-{fit_tokens}"
            inputs = collected(dense, router, parts, folder)
            forward.append(inputs.seconds)
            if router == "calibrated":
                own.append([])
            for number in inputs.layers:
                layer = inputs.layer(number)
                if router == "calibrated":
                    own[-1].append(domains_of(layer, draw, seq_len))
                for seed in range(draw, seeds, draws):
                    for way in ways[router]:
                        started = time.process_time()
                        rows = rows_of(way, layer["fit"], seed + number)
                        seconds[seed] += way.startswith("moeify") * (time.process_time() - started)
                        results[way][seed].append(figures(rows, layer["held_out"]))
    for way, found in results.items():
        array = np.array(found)  # [seeds, layers, 3]
        vio, entropy, least = array[..., 0], array[..., 1], array[..., 2]
        print(
            f"| {name} ({len(inputs.layers)} layers) | {way} | {vio.mean():.2f} |"
            f" {vio.mean(1).max():.2f} | {vio.max():.2f} |"
            f" {entropy.min():.2f}-{entropy.max():.2f} | {int((least < 0.1).sum())} |",
            flush=True,
        )
    print(
        f"{name}: fit {np.mean(seconds) / len(routers):.2f} s of processor time beside"
        f" {np.mean(forward):.2f} s of the forward pass of {fit_tokens} tokens,"
        f" {draws} draws of text",
        file=sys.stderr,
        flush=True,
    )
    if not own:
        return []
    array = np.array(own)  # [draws, layers, figures]
    own_first, later, nmi, nmi_both, enrichment, vio = np.moveaxis(array, -1, 0)
    layers = ", ".join(f"{100 * value:.1f}" for value in own_first.mean(0))
    return [
        f"| {name}, blocks of {seq_len} | {layers} | {100 * own_first[:, 1:].min():.1f} |"
        f" {100 * later.mean(0)[1:].min():.1f} | {nmi.mean(0)[1:].min():.2f} |"
        f" {nmi_both.mean(0)[1:].min():.2f} | {enrichment.mean(0)[1:].min():.0f} |"
        f" {vio.mean():.2f} | {vio.max():.2f} |"
    ]


def domains_of(layer: dict[str, Tensor], seed: int, seq_len: int) -> tuple[float, ...]:
    """Own expert first, the same away from block starts, NMI of the first choice, of both, the
    lowest enrichment of the first choice, and MaxVio."""
    rows = domain_router(layer["fit"], layer["fit_domains"], len(DOMAINS), K, entropy=0.92, seed=seed)
    inputs, domains = layer["held_out"], layer["held_out_domains"]
    own = ((inputs @ rows.T).argmax(-1) == domains).float()
    first = domain_figures(rows, inputs, domains, 1)
    both = domain_figures(rows, inputs, domains, K)
    return (
        float(own.mean()),
        float(own.view(-1, seq_len)[:, LONE:].mean()),
        first.nmi,
        both.nmi,
        float(first.enrichment.min()),
        figures(rows, inputs)[0],
    )


def main() -> None:
    """Measure the models that are asked for."""
    parser = argparse.ArgumentParser(description="Measure fitted routers on held-out text.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=10, help="how often text is drawn anew")
    parser.add_argument("--models", default="gpt2,minilm,smollm2")
    parser.add_argument("--layers", type=int, help="layers of SmolLM2 that are used; else all")
    parser.add_argument("--keep", type=Path, help="folder that keeps layers' inputs for a next run")
    parser.add_argument("--routers", default="calibrated,zeros", help="what upcycle draws")
    parser.add_argument("--fit-tokens", type=int, default=FIT_TOKENS, help="of all domains")
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
    with tempfile.TemporaryDirectory() as scratch:
        keep = options.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for name in options.models.split(","):
            draws = min(options.draws, options.seeds)
            routers = options.routers.split(",")
            own += measure(name, sources[name](), options.seeds, draws, keep, routers, options.fit_tokens)
    print(
        f"\n| model | own expert first, % by layer | lowest of a draw, from layer 2 | lowest layer"
        f" after the first {LONE} tokens of a block | NMI, first choice | NMI, both | enrichment"
        " | MaxVio mean | worst |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(own))


if __name__ == "__main__":
    main()
