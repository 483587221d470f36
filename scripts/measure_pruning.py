"""Pruning criteria side by side on mixtures that were trained until their experts differ.

    python scripts/measure_pruning.py CORPORA_DIR [--seeds 3] [--steps 400] [--json FILE]

CORPORA_DIR holds english.jsonl, python.jsonl, german.jsonl and logs.jsonl as `scripts/corpora.py`
writes them. For each seed the demo GPT-2 becomes 8 experts, all weights are trained on the four
domains, and one calibration serves every criterion. Losses are on passages that neither training
nor calibration saw. Intervals are 95 % t-intervals over seeds of the difference to the mean of
five random prunings of the same model.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
from pathlib import Path

import torch

import moeify
from moeify.pruning.evaluation import held_out_loss
from moeify.routing.data import Blocks, pack, tokenizer_for
from moeify.routing.loading import load_model

DOMAINS = ("english", "python", "german", "logs")
CRITERIA = ("reap", "ean", "gate", "frequency", "aimer")
RANDOM_SEEDS = range(1, 6)
EXPERTS, TOP_K, LENGTH = 8, 2, 128
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
DEMO = Path(moeify.__file__).parent / "demo" / "gpt2"


def passages(folder: Path, per_domain: int) -> list[list[str]]:
    """Shuffled passages of all domains in three parts: to train on, to calibrate on, to test on."""
    draw = random.Random(0)
    parts: list[list[str]] = [[], [], []]
    for domain in DOMAINS:
        lines = (folder / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [
            json.loads(line)["text"] for line in draw.sample(lines, min(per_domain, len(lines)))
        ]
        edges = (0, len(texts) * 7 // 10, len(texts) * 85 // 100, len(texts))
        for number, part in enumerate(parts):
            part += texts[edges[number] : edges[number + 1]]
    for part in parts:
        draw.shuffle(part)
    return parts


def blocks_of(texts: list[str]) -> Blocks:
    """Full blocks only."""
    tokenizer = tokenizer_for(DEMO)
    end = [tokenizer.eos_token_id]
    found = pack(
        ((tokenizer(text, verbose=False)["input_ids"] + end, None) for text in texts), LENGTH, 0
    )
    return found.take(found.lengths == LENGTH)


def train(folder: Path, blocks: Blocks, seed: int, steps: int, batch: int) -> None:
    """Train every weight of the mixture in `folder`, with its balance loss, and save it there."""
    torch.manual_seed(seed)
    model = load_model(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    ids = blocks.inputs()["input_ids"]
    for _ in range(steps):
        rows = ids[torch.randint(len(ids), (batch,))]
        loss = model(input_ids=rows, labels=rows, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.config.output_router_logits = False
    for path in folder.glob("model*"):  # shards of an upcycled model, and their index
        path.unlink()
    model.eval().save_pretrained(folder)


def losses_of(work: Path, moe: Path, text: Path, test: Blocks) -> dict[str, dict[str, float]]:
    """Held-out loss after every pruning of one model."""
    found: dict[str, dict[str, float]] = {}
    scores = work / "scores.json"

    def loss(**options: object) -> float:
        output = work / "pruned"
        moeify.prune(moe, output, force=True, scores=scores, **options)
        return held_out_loss(output, test, 16)

    shared = {"dataset": str(text), "seq_len": LENGTH, "max_tokens": 60_000, "batch_size": 16}
    loss(keep=4, **shared)
    for ratio in (0.25, 0.5):
        row = {by: loss(ratio=ratio, by=by) for by in CRITERIA}
        row["reap, merged"] = loss(ratio=ratio, by="reap", merge=True)
        row |= {f"random {n}": loss(ratio=ratio, by="random", seed=n) for n in RANDOM_SEEDS}
        found[f"{ratio:.0%}"] = row
    found["0%"] = {"unpruned": held_out_loss(moe, test, 16)}
    return found


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % t-interval."""
    mean = statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:+.4f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} +- {half:.4f}"


def table(seeds: list[dict[str, dict[str, float]]]) -> str:
    """Markdown rows: ratio, criterion, loss, difference to random, models better than random."""
    before = statistics.mean(one["0%"]["unpruned"] for one in seeds)
    lines = [f"Unpruned: {before:.4f} nats per token, mean of {len(seeds)} models.", ""]
    lines += ["| dropped | criterion | loss | difference to random | below every random pruning |",
              "|---|---|---|---|---|"]  # fmt: skip
    for ratio in ("25%", "50%"):
        chance = [[one[ratio][f"random {n}"] for n in RANDOM_SEEDS] for one in seeds]
        middle = [statistics.mean(row) for row in chance]
        spread = statistics.mean(statistics.stdev(row) for row in chance)
        lines.append(
            f"| {ratio} | random | {statistics.mean(middle):.4f} | spread {spread:.4f} | |"
        )
        for by in (*CRITERIA, "reap, merged"):
            own = [one[ratio][by] for one in seeds]
            gains = [x - m for x, m in zip(own, middle, strict=True)]
            wins = sum(x < min(row) for x, row in zip(own, chance, strict=True))
            lines.append(f"| {ratio} | {by} | {statistics.mean(own):.4f} | {interval(gains)}"
                         f" | {wins} of {len(seeds)} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Train, prune, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--per-domain", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # runs repeat, and the models are too small for more
    parts = passages(options.corpora, options.per_domain)
    fit, test = blocks_of(parts[0]), blocks_of(parts[2])
    print(f"{len(fit)} blocks to train on, {len(test)} to test on", flush=True)
    found = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            work, moe = Path(name), Path(name, "moe")
            moeify.upcycle(
                DEMO, moe, num_experts=EXPERTS, top_k=TOP_K, noise=0.1, seed=seed
            )  # fmt: skip
            train(moe, fit, seed, options.steps, options.batch)
            text = work / "calibration.jsonl"
            rows = (json.dumps({"text": passage}) for passage in parts[1])
            text.write_text("\n".join(rows), encoding="utf-8")
            found.append(losses_of(work, moe, text, test))
            print(json.dumps(found[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
