"""Does upcycling pay? ``python scripts/measure_decoders.py WORK [--base gpt2] [--tokens 2000000] [--seeds 3]``

A dense model, and mixtures made of it in every way that moeify has, are trained on the same new text in four domains
and compared on text that is held out, by tokens and by FLOPs. Each arm takes the better of two learning rates, chosen
on a quarter of the tokens and a part of the text that nothing is reported of. Runs that stand in the results already
are not repeated, so the command goes on where it was interrupted, and several processes may share its work: each
takes runs that no other one has. ``--table`` prints what there is as Markdown.
"""

import argparse
import math
import statistics
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from evidence_models import ARMS, base, text
from evidence_training import Results, Run, trained
from filelock import FileLock, Timeout

RESULTS = Path(__file__).parents[1] / "docs" / "measured" / "decoders.json"
RATES = (1e-3, 3e-3)
TUNING_SEED = 100
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided t quantiles of 95 %, by the number of seeds."""


class Study:
    """The runs of one base model, in the order in which they are wanted."""

    def __init__(self, name: str, arms: list[str], tokens: int, seeds: int, results: Results) -> None:
        self.name, self.arms, self.tokens, self.seeds, self.results = name, arms, tokens, seeds, results

    def tuning(self, arm: str) -> list[Run]:
        """The runs that choose an arm's learning rate."""
        return [
            Run(base=self.name, arm=arm, learning_rate=rate, seed=TUNING_SEED, tokens=self.tokens // 4, part="tune")
            for rate in RATES
        ]

    def rate(self, arm: str) -> float | None:
        """The learning rate with the lower loss; None before both are there."""
        found = [(self.results.of(run), run.learning_rate) for run in self.tuning(arm)]
        losses = [(one["points"][-1]["loss"], rate) for one, rate in found if one is not None]
        return min(losses)[1] if len(losses) == len(RATES) else None

    def wanted(self) -> Iterator[Run]:
        """All runs that can be made now: those that choose rates first, then seed by seed."""
        for arm in self.arms:
            yield from self.tuning(arm)
        for seed in range(self.seeds):
            for arm in self.arms:
                if (rate := self.rate(arm)) is not None:
                    yield Run(base=self.name, arm=arm, learning_rate=rate, seed=seed, tokens=self.tokens)

    def measured(self, arm: str) -> list[dict[str, Any]]:
        """The arm's runs with its rate, by seed."""
        return [
            one
            for one in self.results.read()
            if (one["base"], one["arm"], one["tokens"], one["part"]) == (self.name, arm, self.tokens, "test")
        ]


def interval(values: list[float]) -> str:
    """Mean and half of the 95 % t-interval over seeds."""
    mean = statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:.4f}"
    return f"{mean:.4f} +- {T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def table(study: Study) -> Iterator[str]:
    """Markdown rows: parameters, FLOPs, losses after each part of the training, what the routers do."""
    yield "| arm | rate | active of all parameters | FLOPs | at step 0 | 10 % | 25 % | 50 % | 100 % | MaxVio | NMI |"
    yield "| --- |" + " ---: |" * 10
    dense = next(iter(study.measured("dense")), None)
    for arm in study.arms:
        if not (runs := study.measured(arm)):
            continue
        first = runs[0]
        flops = "" if dense is None else f"{first['flops_per_token'] / dense['flops_per_token']:.2f} x"
        losses = [interval([run["points"][n]["loss"] for run in runs]) for n in range(len(first["points"]))]
        last = [run["points"][-1] for run in runs]
        routed = [
            statistics.mean(p[key] for p in last) if key in last[0] else None for key in ("max_violation", "nmi")
        ]
        figures = [f"{value:.2f}" if value is not None else "" for value in routed]
        sizes = f"{first['active'] / 1e6:.2f} of {first['parameters'] / 1e6:.2f} M"
        rate = f"{first['learning_rate']:g}"
        yield f"| {' | '.join([arm, rate, sizes, flops, *losses, *figures])} |"


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = argparse.ArgumentParser(description="Compare dense models and mixtures at equal tokens and FLOPs.")
    parser.add_argument("work", type=Path, help="folder for models and locks")
    parser.add_argument("--base", choices=("gpt2", "qwen3"), default="gpt2")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="this one; may be repeated")
    parser.add_argument("--measured", type=int, default=40_000, help="tokens that losses are measured on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--until", type=float, default=math.inf, help="minutes after which no run is begun")
    parser.add_argument("--table", action="store_true", help="print what was measured, and run nothing")
    options = parser.parse_args()
    arms = options.arm or list(ARMS)
    study = Study(options.base, arms, options.tokens, options.seeds, Results(options.results))
    if options.table:
        print("\n".join(table(study)))
        return
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    dense, end, texts = base(options.base, options.work), time.monotonic() + 60 * options.until, {}
    while time.monotonic() < end and (taken := _next(study, options.work)) is not None:
        run, lock = taken
        with lock:
            texts[run.tokens] = texts.get(run.tokens) or text(run.tokens, options.measured)
            found = trained(run, dense, texts[run.tokens])
            study.results.add(run, found)
        print(f"{run}: {found['points'][-1]['loss']:.4f} after {found['seconds']} s", flush=True)


def _next(study: Study, work: Path) -> tuple[Run, FileLock] | None:
    """A run that is not in the results and that no other process is at, and its lock, which is held."""
    for run in study.wanted():
        lock = FileLock(work / f"{zlib.crc32(repr(run).encode()):08x}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        if study.results.of(run) is None:
            return run, lock
        lock.release()
    return None


if __name__ == "__main__":
    main()
