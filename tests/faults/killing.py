"""One moment at which a command is killed, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moeify
from tests.faults.processes import Ended, Forked, Nursery, Place, Running
from tests.faults.scenarios import Scenario, place_for
from tests.hub.stand_in import HubStandIn

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_LEFT_BY_KILL = (".out.moeify-partial", ".out.moeify-replaced")
Tree = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An undisturbed run: what it wrote, how long it took and its operations on files.

    ``problems`` are those that the source has as well.
    """

    output: Tree
    problems: tuple[object, ...]
    seconds: float
    operations: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a strike did. ``state`` of the output: absent, old, complete."""

    scenario: str
    signal: str
    moment: str
    code: int
    state: str
    left: tuple[str, ...]
    resumed: bool


def tree(folder: Path) -> Tree:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Striker:
    """Runs scenarios undisturbed once, and then kills them at moments drawn from a seed.

    Commands that import torch come from the nursery; with ``fresh`` the others start from the
    interpreter on, as a user's do.
    """

    def __init__(self, folder: Path, nursery: Nursery, *, fresh: bool = True) -> None:
        self._folder, self._nursery, self._fresh = folder, nursery, fresh
        self._references: dict[str, Reference] = {}
        self._begun = str(folder / "begun")
        self._count = 0

    def start(self, scenario: Scenario, place: Place, moment: dict[str, Any] | None, *more: str) -> Running | Forked:
        line = scenario.line("out", *more)
        if moment is not None and scenario.command == "upcycle":
            moment = {**moment, "processes": True}
        # The Hub's client reads the variables that a push needs when it is imported.
        if scenario.command == "push" or (self._fresh and not scenario.heavy):
            return Running(place, line, moment)
        return self._nursery.start(place, line, moment)

    def _begin(self, running: Running | Forked) -> float:
        """Wait until the interpreter has started and moeify begins."""
        while not Path(self._begun).exists():
            assert running.alive, running.wait().stderr
            time.sleep(0.001)
        Path(self._begun).unlink()
        return time.perf_counter()

    def reference(self, scenario: Scenario) -> Reference:
        """The undisturbed run of a scenario, made once."""
        key = scenario.name
        if key not in self._references:
            folder = self._folder / "reference"
            with place_for(scenario, folder) as (place, hub):
                counter = self._folder / "operations"
                moment = {"below": str(folder), "count_to": str(counter), "begun": self._begun}
                running = self.start(scenario, place, moment)
                began = self._begin(running)
                ended = running.wait()
                assert ended.code == 0, ended.stderr
                written = published(hub) if hub is not None else tree(folder / "out")
                whole = scenario.source if hub is not None else folder / "out"
                problems = tuple(moeify.inspect(whole).problems)
            self._references[key] = Reference(
                output=written,
                problems=problems,
                seconds=time.perf_counter() - began,
                operations=int(counter.read_text() or 0),
            )
            shutil.rmtree(folder)
            counter.unlink()
        return self._references[key]

    def strike(self, scenario: Scenario, rng: random.Random, operation: int | None = None) -> Outcome:
        """Kill a scenario once; raises ``AssertionError`` where something was lost or left.

        Half the moments are operations on files, unless one is given, half are points in time.
        """
        reference = self.reference(scenario)
        number = rng.choice(SIGNALS)
        by_operation = (reference.operations > 0 and rng.random() < 0.5) or operation is not None
        self._count += 1
        folder = self._folder / f"strike-{self._count}"
        with place_for(scenario, folder) as (place, hub):
            before, old = tree(scenario.source), {}
            if scenario.force:
                (folder / "out").mkdir()
                (folder / "out" / "old").write_text("what was there")
                old = tree(folder / "out")
            more = ("--force",) if scenario.force else ()
            if by_operation:
                at: float = operation or rng.randint(1, reference.operations)
                moment = {"below": str(folder), "operation": at, "signal": number}
                ended = self.start(scenario, place, moment, *more).wait()
            else:
                at = rng.uniform(0, reference.seconds)
                running = self.start(scenario, place, {"begun": self._begun}, *more)
                self._begin(running)
                time.sleep(at)
                running.signal(number)
                ended = running.wait()
            text = f"operation {at}" if by_operation else f"{at:.3f} s"
            told = f"{scenario.name}, {number.name} at {text}: {ended.code} {ended.stderr}"
            assert tree(scenario.source) == before, told
            state = _check_end(scenario, ended, number, folder, hub, reference, old, told)
            if ended.code in (130, 143) and state != "complete":  # else the work was done already
                assert "interrupted" in ended.stderr, told
            left = tuple(sorted(p.name for p in folder.iterdir() if p.name not in ("out", "hf")))
            resumed = self._check_next(scenario, place, hub, state, reference, told)
            assert tree(scenario.source) == before, told
        shutil.rmtree(folder)
        return Outcome(
            scenario=scenario.name,
            signal=number.name,
            moment=text,
            code=ended.code,
            state=state,
            left=left,
            resumed=resumed,
        )

    def _check_next(
        self, scenario: Scenario, place: Place, hub: HubStandIn | None, state: str, reference: Reference, told: str
    ) -> bool:
        """The same command again succeeds, resumes where there is something, leaves nothing."""
        run = place.folder / "out.warmup"
        resumed = any(run.glob("checkpoint-*/trainer_state.json"))
        more = []
        if scenario.force or state != "absent":
            more.append("--force")
        if resumed and state == "absent":
            more = ["--resume"]
        ended = self.start(scenario, place, None, *([] if hub is not None else more)).wait()
        assert ended.code == 0, f"{told}\nthe next run: {ended.code} {ended.stderr}"
        left = {path.name for path in place.folder.iterdir()} - {"hf"}
        if hub is not None:
            assert published(hub) == reference.output, told
            assert not left, f"{told}\nthe next run left {left}"
            return resumed
        assert left == {"out"}, f"{told}\nthe next run left {left}"
        check_output(place.folder / "out", reference, told, exact=not resumed)
        return resumed


def _check_end(
    scenario: Scenario,
    ended: Ended,
    number: signal.Signals,
    folder: Path,
    hub: HubStandIn | None,
    reference: Reference,
    old: Tree,
    told: str,
) -> str:
    """What must hold right after the signal; returns the state of the output."""
    assert ended.code in (0, 128 + number), told
    assert "Traceback" not in ended.stderr and "bug in moeify" not in ended.stderr, told
    names = {path.name for path in folder.iterdir()} - {"hf"}
    allowed = {"out", *scenario.resumes}
    if ended.code == 128 + signal.SIGKILL:
        allowed |= {*_LEFT_BY_KILL, *(f".{name}.moeify-partial" for name in scenario.resumes)}
    assert names <= allowed, f"{told}\nleft {names - allowed}"
    if hub is not None:
        there = published(hub)
        assert not there or there == reference.output, told
        return "complete" if there else "absent"
    out = folder / "out"
    if not out.exists():
        between = not scenario.force or ".out.moeify-replaced" in names
        assert ended.code != 0 and between, told
        return "absent"
    if old and tree(out) == old:
        return "old"
    check_output(out, reference, told)
    return "complete"


def check_output(out: Path, expected: Reference, told: str, exact: bool = True) -> None:
    """The output is whole by its own headers, and the same as that of an undisturbed run."""
    problems = tuple(moeify.inspect(out).problems)
    assert problems == expected.problems, f"{told}\n{problems}"
    found, wanted = tree(out), expected.output
    if exact:
        differing = {n for n in {*found, *wanted} if found.get(n) != wanted.get(n)}
        assert not differing, f"{told}\nnot as without the kill: {differing}"
    else:
        assert found.keys() == wanted.keys(), told


def published(hub: HubStandIn) -> Tree:
    """What a visitor of the repository sees, but for what the Hub itself puts there."""
    repository = hub.repositories.get("user/moe")
    files = {} if repository is None else repository.files()
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != ".gitattributes"}
