"""What the checks of an output cost: always, with ``--checksum``, and ``inspect --verify`` later.

Run from the repository: ``python -m benchmarks.checks``. Every figure is a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Measure, measure, median, spread
from benchmarks.random_checkpoint import write_checkpoint

_MOEIFY = [sys.executable, "-m", "moeify"]


def outputs(layers: int, runs: int) -> None:
    """Upcycling with and without ``--checksum``, in turns, and reading it again."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        write_checkpoint(folder / "dense", layers)
        out = folder / "out"
        line = [*_MOEIFY, "upcycle", str(folder / "dense"), str(out), "-q"]
        found: dict[str, list[Measure]] = {}
        for noise in ("0", "0.01"):
            for _ in range(runs):
                for extra in ([], ["--checksum"]):
                    shutil.rmtree(out, ignore_errors=True)
                    label = f"upcycle, noise {noise} {' '.join(extra)}".strip()
                    command = [*line, "--noise", noise, *extra]
                    found.setdefault(label, []).append(measure(command))
        for _ in range(runs):
            command = [*_MOEIFY, "inspect", str(out), "--verify", "-q"]
            found.setdefault("inspect --verify", []).append(measure(command))
        total = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"\n{total / 1e9:.2f} GB of weights, median of {runs}\n")
    print("| | seconds | CPU seconds | peak MiB |\n| --- | --- | --- | --- |")
    for label, runs_of in found.items():
        print(
            f"| {label} | {spread([m.seconds for m in runs_of])} |"
            f" {spread([m.cpu_seconds for m in runs_of])} |"
            f" {median([m.peak_mib for m in runs_of]):.0f} |"
        )


def structure() -> None:
    """The check that is always made, on 18,867 tensors."""
    from moeify.checkpoint.reader import Checkpoint
    from moeify.families.structure import check_structure
    from tests.inspection.sparse_checkpoint import write_sparse

    with tempfile.TemporaryDirectory() as folder:
        write_sparse(Path(folder))
        times = []
        for _ in range(5):
            started = time.process_time()
            opened = Checkpoint.open(Path(folder))
            read = time.process_time()
            check_structure(opened.tensors, opened.config, "the output")
            times.append((read - started, time.process_time() - read))
    headers, checks = (min(column) for column in zip(*times, strict=True))
    print(f"\n18,867 tensors: headers {headers:.2f} s, structure {checks:.2f} s CPU (best of 5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    structure()
    outputs(options.layers, options.runs)
