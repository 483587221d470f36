"""The long form: ``python -m tests.faults --moments 200``, in parts by ``--from`` and ``--to``."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.faults.killing import Outcome, Striker
from tests.faults.processes import nursery
from tests.faults.scenarios import make_sources, scenarios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--to", type=int, default=None, dest="last")
    parser.add_argument("--log", type=Path, default=None, help="Append an outcome a line.")
    options = parser.parse_args()
    last = options.moments if options.last is None else options.last
    outcomes: list[Outcome] = []
    failed = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as name, nursery() as parent:
        found = scenarios(make_sources(Path(name) / "sources"))
        striker = Striker(Path(name), parent)
        for number in range(options.first, last):
            rng = random.Random(f"{options.seed}/{number}")
            scenario = found[number % len(found)]
            try:
                outcome = striker.strike(scenario, rng)
            except AssertionError:
                failed += 1
                print(f"moment {number} FAILED", file=sys.stderr)
                traceback.print_exc()
                continue
            outcomes.append(outcome)
            if options.log is not None:
                with options.log.open("a") as log:
                    log.write(json.dumps({"number": number, **asdict(outcome)}) + "\n")
    report(outcomes, failed, time.perf_counter() - started)
    raise SystemExit(1 if failed else 0)


def report(outcomes: list[Outcome], failed: int, seconds: float) -> None:
    """Counts by command, signal and what was found."""
    print(f"{len(outcomes) + failed} moments, {failed} failed, {seconds:.0f} s")
    for title, values in (
        ("command", [o.scenario.split()[0] for o in outcomes]),
        ("signal", [o.signal for o in outcomes]),
        ("output afterwards", [o.state for o in outcomes]),
        ("exit code", [o.code for o in outcomes]),
        ("left", [name for o in outcomes for name in o.left]),
        ("resumed", [o.scenario for o in outcomes if o.resumed]),
    ):
        counts = ", ".join(f"{value} {count}" for value, count in sorted(Counter(values).items()))
        print(f"{title}: {counts}")


if __name__ == "__main__":
    main()
