"""Pruning criteria side by side on mixtures that moeify made and warmed up.

    python scripts/measure_pruning.py CORPORA_DIR [--seeds 5] [--first-seed 0] [--json FILE]

CORPORA_DIR holds english.jsonl, python.jsonl, german.jsonl and logs.jsonl as `scripts/corpora.py`
writes them. For each seed the demo GPT-2 becomes 8 experts with noise, `moeify warmup` trains the
routers and then routers and experts on the four domains, and one calibration serves every
criterion. Losses are on passages that neither training nor calibration saw. Intervals are 95 %
t-intervals over seeds of the difference to the mean of five random prunings of the same model.
Results are added to FILE, so that seeds can run one by one; --seeds 0 prints the table again.
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
from moeify.pruning.config import PruneConfig
from moeify.pruning.evaluation import held_out_losses
from moeify.routing.data import Blocks, pack, tokenizer_for

DOMAINS = ("english", "python", "german", "logs")
CRITERIA = ("reap", "ean", "gate", "frequency", "aimer")
RANDOM_SEEDS = range(1, 6)
EXPERTS, TOP_K, LENGTH, NOISE = 8, 2, 128, 0.2
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
DEMO = Path(moeify.__file__).parent / "demo" / "gpt2"


def passages(folder: Path, per_domain: int) -> list[list[str]]:
    """Shuffled passages of all domains in three parts: to train on, to calibrate on, to test on."""
    draw = random.Random(0)
    parts: list[list[str]] = [[], [], []]
    for domain in DOMAINS:
        lines = (folder / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in draw.sample(lines, min(per_domain, len(lines)))]
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
    found = pack(((tokenizer(text, verbose=False)["input_ids"] + end, None) for text in texts), LENGTH, 0)
    return found.take(found.lengths == LENGTH)


def write_texts(path: Path, texts: list[str]) -> Path:
    """One passage a line."""
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def warmed(work: Path, text: Path, seed: int, steps: int) -> tuple[Path, dict[str, float]]:
    """A mixture out of the dense demo through upcycle and a staged warm-up, and how that went."""
    moeify.upcycle(DEMO, work / "copies", num_experts=EXPERTS, top_k=TOP_K, noise=NOISE, seed=seed)
    shared = {"dataset": str(text), "seq_len": LENGTH, "batch": 16, "seed": seed}
    moeify.warmup(work / "copies", work / "routed", steps=steps // 4, **shared)
    report = moeify.warmup(work / "routed", work / "moe", train="moe", steps=steps, **shared)
    return work / "moe", {
        "loss before": report.eval_loss_before,
        "loss after": report.eval_loss_after,
        "MaxVio": report.max_violation_after,
        "dead": report.dead_after,
    }


def loss_in(folder: Path, test: Blocks) -> float:
    """Nats per token of a mixture on ``test``."""
    return held_out_losses(folder, test, PruneConfig(keep=1, batch=16), folder).mean()


def losses_of(work: Path, moe: Path, text: Path, test: Blocks) -> dict[str, dict[str, float]]:
    """Held-out loss after every pruning of one model."""
    found: dict[str, dict[str, float]] = {}
    scores = work / "scores.json"

    def loss(**options: object) -> float:
        output = work / "pruned"
        moeify.prune(moe, output, force=True, scores=scores, **options)
        return loss_in(output, test)

    shared = {"dataset": str(text), "seq_len": LENGTH, "max_tokens": 60_000, "batch": 16}
    loss(keep=4, **shared)
    for ratio in (0.25, 0.5):
        row = {by: loss(ratio=ratio, by=by) for by in CRITERIA}
        row["reap, merged"] = loss(ratio=ratio, by="reap", merge=True)
        row |= {f"random {n}": loss(ratio=ratio, by="random", seed=n) for n in RANDOM_SEEDS}
        found[f"{ratio:.0%}"] = row
    found["0%"] = {"unpruned": loss_in(moe, test)}
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
    lines += [
        "| dropped | criterion | loss | difference to random | below every random pruning |",
        "|---|---|---|---|---|",
    ]
    for ratio in ("25%", "50%"):
        chance = [[one[ratio][f"random {n}"] for n in RANDOM_SEEDS] for one in seeds]
        middle = [statistics.mean(row) for row in chance]
        spread = statistics.mean(statistics.stdev(row) for row in chance)
        lines.append(f"| {ratio} | random | {statistics.mean(middle):.4f} | spread {spread:.4f} | |")
        for by in (*CRITERIA, "reap, merged"):
            own = [one[ratio][by] for one in seeds]
            gains = [x - m for x, m in zip(own, middle, strict=True)]
            wins = sum(x < min(row) for x, row in zip(own, chance, strict=True))
            lines.append(
                f"| {ratio} | {by} | {statistics.mean(own):.4f} | {interval(gains)} | {wins} of {len(seeds)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Make the mixtures, prune them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--per-domain", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # runs repeat, and the models are too small for more
    found = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    parts = passages(options.corpora, options.per_domain)
    test = blocks_of(parts[2])
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            training = write_texts(work / "training.jsonl", parts[0])
            moe, warmup = warmed(work, training, seed, options.steps)
            print(json.dumps({"seed": seed, **warmup}), flush=True)
            calibration = write_texts(work / "calibration.jsonl", parts[1])
            found.append({**losses_of(work, moe, calibration, test), "warmup": warmup})
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
