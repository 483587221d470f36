"""Writing slices beside plain copies of the same size, on the disk and in memory: ``python -m benchmarks.slices``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Measure, measure, spread
from benchmarks.random_checkpoint import BERT, write_checkpoint

NUM_LAYERS, NUM_EXPERTS = 12, 8
SHARED_MEMORY = "/dev/shm"
WAYS: dict[str, list[str]] = {"copies": [], "4 slices": ["--slices", "4"]}


def upcycled(source: Path, output: Path, noise: float, options: list[str]) -> Measure:
    """One process; what it made is removed."""
    what = ["--experts", str(NUM_EXPERTS), "--top-k", "1", "--router", "normal", "--noise", str(noise), "--quiet"]
    found = measure([sys.executable, "-m", "moeify", "upcycle", str(source), str(output), *what, *options])
    shutil.rmtree(output)
    return found


def row(folder: Path, noise: float, runs: int) -> list[str]:
    """Ratios of slices to copies, run by run."""
    found: dict[str, list[Measure]] = {name: [] for name in WAYS}
    for number in range(runs):
        for name in list(WAYS) if number % 2 else reversed(WAYS):
            found[name].append(upcycled(folder / "dense", folder / "moe", noise, WAYS[name]))
    copies, slices = found.values()
    ratios = [
        spread([getattr(own, of) / getattr(other, of) for own, other in zip(slices, copies, strict=True)])
        for of in ("seconds", "cpu_seconds")
    ]
    return [*ratios, *(f"{max(run.peak_mib for run in runs):.0f}" for runs in (copies, slices))]


def main() -> None:
    """Print the table and clean up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slices", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="rounds of each row")
    options = parser.parse_args()
    print("| where, noise | seconds, x copies | CPU seconds, x copies | peak MiB, copies | slices |")
    print("| --- | --- | --- | --- | --- |")
    for place in (None, SHARED_MEMORY):
        if place is not None and not os.path.isdir(place):
            continue
        with tempfile.TemporaryDirectory(prefix="moeify-bench-", dir=place) as scratch:
            write_checkpoint(Path(scratch) / "dense", NUM_LAYERS, BERT)
            for noise in (0.0, 0.01):
                cells = row(Path(scratch), noise, options.runs)
                print(f"| {place or 'disk'}, {noise} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as failure:
        sys.exit(str(failure))
