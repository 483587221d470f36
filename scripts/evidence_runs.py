"""Runs behind docs/measured/evidence.md: the file that keeps what was measured, and processes that share the work."""

import argparse
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from moeify.checkpoint.replacing import replacing

MEASURED = Path(__file__).parents[1] / "docs" / "measured"
DECODER_RATES = (1e-3, 3e-3, 6e-3)
"""That measure_decoders.py chooses among."""
WAIT = 5
"""Seconds between two looks at what other processes are at."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: of what, how, on how many tokens, and on which held-out part it is measured."""

    base: str
    arm: str = ""
    learning_rate: float = 0.0
    seed: int = 0
    tokens: int
    part: str = "test"


class Results:
    """Measured runs in one JSON file, which several processes may write to. A run is any frozen dataclass."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, FileLock(path.with_suffix(".lock"))

    def read(self) -> list[dict[str, Any]]:
        """All of them."""
        return json.loads(self.path.read_text(encoding="utf-8"))["runs"] if self.path.exists() else []

    def of(self, run: Any) -> dict[str, Any] | None:
        """What was measured of a run, None where nothing was."""
        wanted = asdict(run).items()
        return next((found for found in self.read() if wanted <= found.items()), None) if self.path.exists() else None

    def add(self, run: Any, found: dict[str, Any]) -> None:
        """Keep what was measured of a run."""
        with self.lock:
            runs = [*self.read(), {**asdict(run), **found}]
            runs.sort(key=lambda one: [str(one[key]) for key in asdict(run)])
            lines = ",\n".join(f"  {json.dumps(one)}" for one in runs)
            with replacing(self.path) as partial:  # others read it meanwhile, without the lock
                partial.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")


class Study:
    """The runs of several arms, in the order in which they are wanted, as ``options`` of the command line say.

    ``full`` is what is reported of each arm and seed, ``short`` what chooses its learning rate among ``rates``: that
    of the lowest ``score``. Without it the rates are given, one for each arm. ``also`` gives further runs of an arm
    that are reported as well, once its rate is known. ``make`` runs one and gives what is kept of it.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        *,
        full: Any,
        short: Any = None,
        arms: list[str],
        rates: tuple[float, ...] | dict[str, float],
        make: Callable[[Any], dict[str, Any]],
        score: Callable[[dict[str, Any]], float] = lambda found: found["points"][-1]["loss"],
        also: Callable[[str], list[Any]] = lambda arm: [],
    ) -> None:
        self.options, self.full, self.short, self.arms, self.rates = options, full, short, arms, rates
        self.results, self.make, self.score, self.also = Results(options.results), make, score, also

    def tuning(self, arm: str) -> list[Any]:
        """The runs that choose an arm's learning rate."""
        if isinstance(self.rates, dict):
            return []
        return [replace(self.short, arm=arm, learning_rate=rate) for rate in self.rates]

    def rate(self, arm: str) -> float | None:
        """The best learning rate; None before all were tried."""
        if isinstance(self.rates, dict):
            return self.rates[arm]
        best = self.tuned(arm)
        return best and best["learning_rate"]

    def tuned(self, arm: str) -> dict[str, Any] | None:
        """What was measured of an arm at its best learning rate; None before all were tried."""
        found = [self.results.of(run) for run in self.tuning(arm)]
        return None if None in found else min(found, key=self.score)

    def wanted(self) -> Iterator[Any]:
        """All runs that can be made now: those that choose rates first, then what is reported, seed by seed."""
        for arm in self.arms:
            yield from self.tuning(arm)
        rates = {arm: rate for arm in self.arms if (rate := self.rate(arm)) is not None}
        for kind in zip_longest(*([self.full, *self.also(arm)] for arm in rates)):
            for seed in range(self.options.seeds):
                for run, (arm, rate) in zip(kind, rates.items(), strict=True):
                    if run is not None:
                        yield replace(run, arm=arm, learning_rate=rate, seed=seed)

    def share(self) -> None:
        """Make what is missing and no other process is at, until nothing is or the minutes are over."""
        torch.set_num_threads(1)
        work: Path = self.options.work
        work.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * self.options.until
        while time.monotonic() < end:
            if (taken := self._next(work)) is None:
                if all(self.rate(arm) is not None for arm in self.arms):
                    return
                time.sleep(WAIT)  # others are at runs that choose a rate
                continue
            run, lock = taken
            started = time.perf_counter()
            with lock:
                found = self.make(run)
                seconds = round(time.perf_counter() - started)
                self.results.add(run, {**found, "seconds": seconds})
            print(f"{run}: {self.score(found):.4f} after {seconds} s", flush=True)

    def _next(self, work: Path) -> tuple[Any, FileLock] | None:
        """A run that is not in the results and that no other process is at, and its lock, which is held."""
        for run in self.wanted():
            lock = FileLock(work / f"{zlib.crc32(repr(run).encode()):08x}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            if self.results.of(run) is None:
                return run, lock
            lock.release()
        return None


def chosen_rate(base: str, arm: str) -> float:
    """The learning rate that measure_decoders.py chose for an arm, by what it keeps in docs/measured."""
    runs = [one for one in Results(MEASURED / "decoders.json").read() if (one["base"], one["arm"]) == (base, arm)]
    tuned = [one for one in runs if one["part"] == "tune"]
    longest = max((one["tokens"] for one in tuned), default=0)
    tried = [(one["points"][-1]["loss"], one["learning_rate"]) for one in tuned if one["tokens"] == longest]
    if len(tried) < len(DECODER_RATES):
        raise SystemExit(f"no learning rate is known for {base}, {arm}: run measure_decoders.py first")
    return float(min(tried)[1])


def arguments(description: str, results: str, arms: list[str], seeds: int = 3) -> argparse.ArgumentParser:
    """What all measuring scripts can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path, help="folder for models and locks")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--arm", action="append", choices=arms, help="this one; may be repeated")
    parser.add_argument("--results", type=Path, default=MEASURED / results)
    parser.add_argument("--until", type=float, default=math.inf, help="minutes after which no run is begun")
    parser.add_argument("--table", action="store_true", help="print what was measured, and run nothing")
    return parser


def decoder_arguments(
    description: str, results: str, arms: list[str], *, tokens: int, seeds: int = 3
) -> argparse.ArgumentParser:
    """The same of those that train decoders, on ``tokens`` where nothing else is said."""
    parser = arguments(description, results, arms, seeds)
    parser.add_argument("--base", choices=("gpt2", "qwen3"), default="gpt2")
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--measured", type=int, default=40_000, help="tokens that losses are measured on")
    return parser
