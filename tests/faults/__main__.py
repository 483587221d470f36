"""The long form: ``python -m tests.faults --kind kill --moments 200``, or ``--kind disk``.

Moments are drawn from the seed and their number, so that a failure can be repeated by ``--from``
and ``--to``, and the work be done in parts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.faults.disk import Disk, compile_disk
from tests.faults.killing import Striker
from tests.faults.processes import Nursery, nursery
from tests.faults.scenarios import Scenario, make_sources, scenarios

Fault = Callable[[int], dict[str, object]]
_WRITTEN = {"upcycle": 16_000_000, "attach": 40_000, "extract": 3_000_000, "prune": 6_000_000, "warmup": 400_000}
"""Bytes that a command writes at most, so that a full disk is met anywhere."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("kill", "disk"), default="kill")
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--to", type=int, default=None, dest="last")
    parser.add_argument("--log", type=Path, default=None, help="Append an outcome a line.")
    options = parser.parse_args()
    last = options.moments if options.last is None else options.last
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        library = compile_disk(folder) if options.kind == "disk" else None
        with nursery(library) as parent:
            found = scenarios(make_sources(folder / "sources"))
            make = _kills if options.kind == "kill" else _disks
            fault = make(folder, parent, found, options.seed)
            failed = _run(fault, range(options.first, last), options.log)
    raise SystemExit(1 if failed else 0)


def _kills(folder: Path, parent: Nursery, found: list[Scenario], seed: int) -> Fault:
    strikers = [Striker(folder / kind, parent, fresh=kind == "fresh") for kind in ("fresh", "born")]
    for kind in ("fresh", "born"):
        (folder / kind).mkdir()

    def kill(number: int) -> dict[str, object]:
        # Every fifth light command starts from the interpreter on, which costs ten times as much.
        striker = strikers[0 if number % 5 == 0 else 1]
        rng = random.Random(f"{seed}/{number}")
        return asdict(striker.strike(found[number % len(found)], rng))

    return kill


def _disks(folder: Path, parent: Nursery, found: list[Scenario], seed: int) -> Fault:
    disk = Disk(nursery=parent, folder=folder)
    local = [one for one in found if one.command in _WRITTEN and not one.force]

    def spoil(number: int) -> dict[str, object]:
        scenario = local[number % len(local)]
        rng = random.Random(f"{seed}/{number}")
        kind = disk.anywhere(scenario, _WRITTEN[scenario.command], rng)
        return {"scenario": scenario.name, "fault": kind}

    return spoil


def _run(fault: Fault, numbers: range, log: Path | None) -> int:
    """Every number's fault; returns how many did harm."""
    outcomes: list[dict[str, object]] = []
    failed, started = 0, time.perf_counter()
    for number in numbers:
        try:
            outcome = fault(number)
        except AssertionError:
            failed += 1
            print(f"number {number} FAILED", file=sys.stderr)
            traceback.print_exc()
            continue
        outcomes.append(outcome)
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps({"number": number, **outcome}) + "\n")
    print(f"{len(numbers)} faults, {failed} failed, {time.perf_counter() - started:.0f} s")
    for key in sorted({key for outcome in outcomes for key in outcome} - {"moment"}):
        values = [o[key] for o in outcomes if key in o]
        flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        counts = Counter(str(v).split()[0] if key == "scenario" else str(v) for v in flat)
        print(f"{key}: " + ", ".join(f"{value} {count}" for value, count in sorted(counts.items())))
    return failed


if __name__ == "__main__":
    main()
