"""Where the tokens of a document go after a domain fit, routed by token and by sequence.

    python scripts/measure_route_by.py [--seeds 3] [--first-seed 0] [--models minilm,gpt2]
        [--seq-len 128]

Real checkpoints and real text in four domains, one expert for each: E = 4, K = 1. `moeify warmup`
fits the routers to 24,576 tokens without a training step; the figures are of 12,288 tokens from
other passages, in blocks of --seq-len that hold one domain each: the part of a block's tokens that
go to its domain's own expert, and the part of the blocks whose tokens all go there. Every seed
draws other passages. The table is Markdown, on stdout.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real import checkpoints, corpora

import moeify
from moeify.families.registry import moe_layout
from moeify.routing.collection import RoutedTokens, collect
from moeify.routing.data import Blocks, pack, tokenizer_for
from moeify.routing.loading import load_model
from moeify.routing.passes import WholeModel

DOMAINS = ("english", "german", "logs", "python")  # in the order in which experts go round
FIT_TOKENS, HELD_OUT_TOKENS = 24_576, 12_288
FIRST = 16
MODELS = {"minilm": ("MiniLM", checkpoints.minilm), "gpt2": ("demo GPT-2", checkpoints.demo_gpt2)}


class Shares:
    """For every layer and block, which of its tokens go to the expert of its domain."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len, self.own = seq_len, {}

    def __call__(self, tokens: RoutedTokens) -> None:
        own = tokens.experts[:, 0] == tokens.domains
        self.own.setdefault(tokens.layer, []).append(own.view(-1, self.seq_len).numpy())

    def figures(self) -> dict[str, np.ndarray]:
        """Of each layer, the part of the tokens, of the first and the last, and of the blocks."""
        layers = [np.concatenate(parts) for _, parts in sorted(self.own.items())]
        return {
            "tokens": np.array([own.mean() for own in layers]),
            "first": np.array([own[:, :FIRST].mean() for own in layers]),
            "rest": np.array([own[:, FIRST:].mean() for own in layers]),
            "blocks": np.array([own.all(1).mean() for own in layers]),
        }


def passages(seed: int, folder: Path, tokenizer: object, seq_len: int) -> tuple[Path, Blocks]:
    """A file to fit to, and blocks of other passages, equally many of each domain."""
    rows = corpora.domains(DOMAINS, max_documents=254, seed=seed)
    held_out = [row for number, row in enumerate(rows) if number % 3 == 0]
    path = folder / "fit.jsonl"
    fit = [json.dumps(row) for number, row in enumerate(rows) if number % 3]
    path.write_text("\n".join(fit) + "\n", encoding="utf-8")
    tokens = ((tokenizer(r["text"], verbose=False)["input_ids"], r["domain"]) for r in held_out)
    blocks = pack(tokens, seq_len, 0)
    wanted = HELD_OUT_TOKENS // len(DOMAINS) // seq_len
    chosen = []
    for domain, name in enumerate(DOMAINS):
        found = np.flatnonzero((blocks.domains == domain) & (blocks.lengths == seq_len))
        if len(found) < wanted:
            raise SystemExit(f"{len(found)} blocks of {name}, {wanted} are wanted")
        chosen += [*found[:wanted]]
    return path, blocks.take(chosen)


def measure(source: Path, unit: str, fit: Path, held_out: Blocks, folder: Path, seed: int) -> Shares:
    """Upcycle, fit and route the held-out blocks."""
    moeify.upcycle(source, folder / unit, num_experts=4, top_k=1, noise=0.0, route_by=unit)
    warm = folder / f"{unit}-warm"
    moeify.warmup(
        folder / unit,
        warm,
        dataset=str(fit),
        domain_column="domain",
        steps=0,
        device="cpu",
        seq_len=held_out.seq_len,
        fit_tokens=FIT_TOKENS,
        eval_tokens=2048,
        seed=seed,
    )
    model, shares = load_model(warm), Shares(held_out.seq_len)
    collect(WholeModel(model), moe_layout(model.config.to_dict()), held_out, shares)
    return shares


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seq-len", type=int, default=128)
    options = parser.parse_args()
    print("| model | routed by | tokens, mean | worst layer | first 16 | after them | whole blocks |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for key in options.models.split(","):
        name, source = MODELS[key][0], MODELS[key][1]()
        found: dict[str, list[dict[str, np.ndarray]]] = {"token": [], "sequence": []}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                fit, held_out = passages(seed, folder, tokenizer_for(source), options.seq_len)
                for unit, rows in found.items():
                    rows.append(measure(source, unit, fit, held_out, folder, seed).figures())
        for unit, rows in found.items():
            cells = [
                _spread([row["tokens"].mean() for row in rows]),
                _spread([row["tokens"].min() for row in rows]),
                *(_spread([row[part].mean() for row in rows]) for part in ("first", "rest", "blocks")),
            ]
            print(f"| {name} | {unit} | {' | '.join(cells)} |", flush=True)


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{np.mean(values):.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
