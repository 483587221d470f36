"""Inputs that coverage leads to: ``python -m tests.faults.coverage_guided --inputs 20000``.

Needs atheris, which ``make faults`` installs where it is to be had.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import atheris

_PACKAGES = ["checkpoint", "families", "inspection", "provenance", "upcycling", "pruning"]
with atheris.instrument_imports(include=[f"moeify.{name}" for name in _PACKAGES]):
    from tests.faults.fuzz import PLACE, report_text, seeds_in
    from tests.faults.mutations import mutated
    from tests.faults.trial import Bench, Tally, commands_for


def main() -> None:
    """Hand the search over to libFuzzer, which ends the process after so many inputs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    seeds = [s for s in seeds_in(PLACE / "moeify-hostile-seeds") if "tokenizer" not in s.target]
    tally, started = Tally(), time.perf_counter()
    place = Path(tempfile.mkdtemp(dir=PLACE))
    bench, corpus = Bench(place / "bench", seeds, tally), place / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        content = (seed.folder / seed.target).read_bytes()
        (corpus / str(number)).write_bytes(bytes([number % 256]) + content)

    def one(data: bytes) -> None:
        seed = seeds[data[0] % len(seeds)] if data else seeds[0]
        bench.lay(seed, data[1:])
        for command in commands_for(seed, random.Random(len(data)), 0):
            bench.run(command, seed, f"coverage {options.seed}#{tally.inputs}")
        if tally.inputs % 100 == 0 or tally.inputs >= options.inputs:
            options.report.write_text(report_text(tally, time.perf_counter() - started))

    def mutate(data: bytes, longest: int, number: int) -> bytes:
        """libFuzzer's bytes half of the time, else a change of structure."""
        rng = random.Random(number)
        if not data or rng.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        changed = data[:1] + mutated(data[1:], seeds[data[0] % len(seeds)].target, rng)
        return changed[:longest]

    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={options.inputs}",
            f"-seed={options.seed}",
            "-max_len=60000",
            "-timeout=60",
            "-verbosity=0",
            str(corpus),
        ],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
