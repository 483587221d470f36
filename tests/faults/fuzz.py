"""The long form of the hostile inputs: ``python -m tests.faults.fuzz --inputs 20000 --seed 1``."""

import argparse
import json
import os
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.faults.hostile_seeds import Seed, listed, write_seeds
from tests.faults.mutations import mutated
from tests.faults.trial import Bench, Tally, commands_for, read_seeds

_PART = 200
PLACE = Path(tempfile.gettempdir()) if not Path("/dev/shm").is_dir() else Path("/dev/shm")


def seeds_in(folder: Path) -> list[Seed]:
    """Seeds made once for all runs."""
    if not (folder / "seeds.json").exists():
        folder.mkdir(parents=True)
        (folder / "seeds.json").write_text(listed(write_seeds(folder)))
    return read_seeds(folder)


def fuzz(bench: Bench, seeds: list[Seed], first: int, inputs: int, loading: float, target: str = "") -> None:
    """Inputs ``first`` .. ``first + inputs``; the number alone makes the input."""
    seeds = [s for s in seeds if target in s.target]
    if not loading:  # the tokenizer's files are read by what loads models only
        seeds = [s for s in seeds if not s.target.startswith("tokenizer")]
    content = {seed: (seed.folder / seed.target).read_bytes() for seed in seeds}
    for number in range(first, first + inputs):
        rng = random.Random(number)
        seed = rng.choice(seeds)
        if seed.target.startswith("tokenizer") and not target and rng.random() < 0.7:
            seed = rng.choice(seeds)  # they cost a hundred times as much as others
        bench.lay(seed, mutated(content[seed], seed.target, rng))
        for command in commands_for(seed, rng, loading):
            bench.run(command, seed, f"#{number}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--loading", type=float, default=0.02)
    parser.add_argument("--target", default="")
    parser.add_argument("--minutes", type=float, default=600, help="stop after so long")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    seeds = seeds_in(PLACE / "moeify-hostile-seeds")
    tally = Tally()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=PLACE) as place:
        bench = Bench(Path(place), seeds, tally)
        if options.loading:
            bench.warm(seeds)
        for first in range(options.seed, options.seed + options.inputs, _PART):
            inputs = min(_PART, options.seed + options.inputs - first)
            fuzz(bench, seeds, first, inputs, options.loading, options.target)
            text = report_text(tally, time.perf_counter() - started)
            if options.report:
                options.report.write_text(text)
            if time.perf_counter() - started > 60 * options.minutes:
                break
    print(text)
    raise SystemExit(1 if tally.failures else 0)


def report_text(tally: Tally, seconds: float) -> str:
    document = {**asdict(tally), "seconds": seconds}
    document["failures"] = {kind: [len(w), *w[:3]] for kind, w in tally.failures.items()}
    return json.dumps(document, indent=1)


if __name__ == "__main__":
    main()
