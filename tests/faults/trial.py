"""One hostile folder through one command: within five seconds, 100 MB, and without a traceback."""

import io
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from moeify.cli.app import app
from moeify.errors import MoeifyError
from tests.faults.hostile_seeds import Seed

LIMIT_SECONDS = 5.0
LIMIT_WAIT = 120.0
LIMIT_BYTES = 100_000_000
HEADERS = (
    "inspect",
    "inspect --json",
    "upcycle --dry-run",
    "upcycle",
    "attach",
    "extract",
    "prune",
    "prune --dense",
    "inspect --weights",
    "inspect --verify",
)
SCORED = ("prune --scores",)
LOADING = {
    "dense": ("verify", "upcycle --router"),
    "moe": ("verify", "inspect --dataset", "warmup", "prune --dataset"),
}
PROMPTS = {
    "cat": ["the cat sat on the mat 1", "the cat 2 sat on the mat"],
    "mat": ["mat 3 on the cat sat", "on the mat 4 9 16"],
}
_COMMAND: Any = typer.main.get_command(app)


class Hang(BaseException):
    """More than five seconds."""


@dataclass
class Tally:
    """What came of all trials so far."""

    inputs: int = 0
    trials: int = 0
    accepted: int = 0
    rejected: int = 0
    findings: int = 0
    slowest_rejection: float = 0.0
    slowest: float = 0.0
    slowest_name: str = ""
    peak_growth: int = 0
    peak_name: str = ""
    last: str = ""
    failures: dict[str, list[str]] = field(default_factory=dict)

    def fail(self, kind: str, where: str) -> None:
        """Note a failure; ``where`` says how to see it again."""
        self.failures.setdefault(kind, []).append(where)


def arguments(command: str, folder: Path, output: Path, text: Path, dense: Path) -> list[str]:
    """The command line that ``command`` stands for."""
    word, _, option = command.partition(" ")
    said = [word, str(folder)]
    match command:
        case "upcycle" | "attach":
            said += [str(output), *(["--experts", "4"] if word == "upcycle" else [])]
        case "upcycle --router":
            said += [
                str(output),
                "--experts-from",
                f"{dense},{dense}",
                "--labels",
                "cat,mat",
                option,
                "prompts",
                "--prompts",
                str(text.with_name("prompts.json")),
                "--seq-len",
                "8",
                "--fit-tokens",
                "100",
            ]
        case "upcycle --dry-run":
            said += ["--experts", "4", option]
        case "extract":
            said += [str(output), "--expert", "1"]
        case "prune":
            said += [str(output), "--keep", "3", "--by", "random"]
        case "prune --dense":
            said += [str(output), "--keep", "1", "--by", "aimer", option]
        case "prune --scores":
            said += [str(output), "--keep", "2", "--by", "reap", option, str(folder / "scores.json")]
        case "prune --dataset":
            said += [str(output), "--keep", "2", "--by", "reap", option, str(text), "--max-tokens", "200"]
        case "inspect --dataset":
            said += [option, str(text), "--max-tokens", "200", "--batch", "2", "--vocabulary"]
        case "warmup":
            said += [
                "--dataset",
                str(text),
                str(output),
                "--steps",
                "0",
                "--fit-tokens",
                "200",
                "--eval-tokens",
                "100",
                "--batch",
                "2",
            ]
        case "verify":
            said = [word, str(dense), str(folder), "--batch", "1", "--seq-len", "4", "--text", str(text)]
        case _:
            said += [option] if option else []
    return said


class Bench:
    """Runs trials in this process, in a folder of its own in memory."""

    def __init__(self, place: Path, seeds: list[Seed], tally: Tally) -> None:
        self.place, self.tally = place, tally
        self.folder, self.output = place / "case", place / "out"
        self.text = seeds[0].folder.parent / "text.txt"
        self.text.with_name("prompts.json").write_text(json.dumps(PROMPTS))
        self.dense = {seed.folder.name: seed.folder for seed in seeds if seed.kind == "dense"}
        os.environ["MOEIFY_DEBUG"] = "1"
        import huggingface_hub  # noqa: F401, which cards need: no input is blamed for its import

    def warm(self, seeds: list[Seed]) -> None:
        """Import what loads models, so that no input is blamed for it."""
        for seed in seeds:
            if seed.folder.name not in ("gpt2", "gpt2-moe") or seed.target != "config.json":
                continue
            self.lay(seed, (seed.folder / seed.target).read_bytes())
            for command in LOADING[seed.kind]:
                line = arguments(command, self.folder, self.output, self.text, self.dense["gpt2"])
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    outcome = self._outcome(line)
                assert outcome in ("accepted", "findings"), (line, outcome)
                shutil.rmtree(self.output, ignore_errors=True)
            self.tally.inputs -= 1

    def lay(self, seed: Seed, content: bytes) -> None:
        """A copy of the seed's folder by links, in which ``content`` takes its target's place."""
        self.tally.inputs += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for path in seed.folder.iterdir():
            if path.name != seed.target:
                os.link(path, self.folder / path.name)
        (self.folder / seed.target).write_bytes(content)

    def run(self, command: str, seed: Seed, where: str) -> None:
        """Run ``command`` on the folder and judge what it did."""
        family = seed.folder.name.removesuffix("-moe")
        dense = self.dense.get(family, next(iter(self.dense.values())))
        line = arguments(command, self.folder, self.output, self.text, dense)
        where = f"{where} {command} {seed.folder.name}/{seed.target}"
        said = io.StringIO()
        before = _reset_peak()
        started = time.process_time()
        kind = ""
        try:
            with _time_limit(), redirect_stdout(said), redirect_stderr(said):
                kind = self._outcome(line)
        except Hang as hang:
            kind = f"hang {_place(hang)}"
        seconds, growth = time.process_time() - started, _peak() - before
        self._judge(kind, said.getvalue(), where, seconds, growth)
        for left in (self.output, *self.place.glob(".out.*")):
            if kind != "accepted" and left.exists() and not left.name.endswith("scores.json"):
                self.tally.fail(f"left {left.name} behind", where)
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)

    def _outcome(self, line: list[str]) -> str:
        try:
            code = _COMMAND.main(line, prog_name="moeify", standalone_mode=False)
        except MoeifyError as error:
            self.tally.last = str(error)
            return "rejected" if str(error).strip() else "an error without a word"
        except Hang:
            raise
        except BaseException as error:
            return f"{type(error).__name__} {_place(error)}"
        return {None: "accepted", 0: "accepted", 3: "findings"}.get(code, f"exit {code}")

    def _judge(self, kind: str, said: str, where: str, seconds: float, growth: int) -> None:
        tally = self.tally
        tally.trials += 1
        if kind in ("accepted", "rejected", "findings"):
            setattr(tally, kind, getattr(tally, kind) + 1)
        else:
            tally.fail(kind, where)
        if kind == "rejected":
            tally.slowest_rejection = max(tally.slowest_rejection, seconds)
        if seconds > tally.slowest:
            tally.slowest, tally.slowest_name = seconds, where
        if growth > tally.peak_growth:
            tally.peak_growth, tally.peak_name = growth, where
        if growth > LIMIT_BYTES:
            tally.fail("memory", f"{where} {growth / 1e6:.0f} MB")
        if bad := {c for c in said if not c.isprintable() and c != "\n"}:
            tally.fail("control characters", f"{where} {bad!r}")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/moeify/" in f.filename and "/tests/" not in f.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.name}:{last.lineno} {str(error)[:60]!r}"


@contextmanager
def _time_limit() -> Iterator[None]:
    wall, spent = time.monotonic(), time.process_time()

    def stop(number: int, frame: FrameType | None) -> None:
        # On a machine that does other work too, waiting for one's turn is no hang.
        if time.process_time() - spent > LIMIT_SECONDS or time.monotonic() - wall > LIMIT_WAIT:
            raise Hang
        signal.setitimer(signal.ITIMER_REAL, 1)

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _reset_peak() -> int:
    """Make the kernel measure this process's peak anew; what it holds now in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def commands_for(seed: Seed, rng: random.Random, loading: float) -> list[str]:
    """What to run on one input: commands that read the changed file, heavy ones now and then."""
    if seed.target.startswith("tokenizer"):
        return [rng.choice(LOADING[seed.kind])]
    light = HEADERS[:4] if seed.kind == "dense" else (*HEADERS[:2], *HEADERS[4:])
    chosen = [rng.choice(light)]
    if seed.target == "scores.json":
        chosen = [*SCORED]
    if rng.random() < loading:
        chosen.append(rng.choice(LOADING[seed.kind]))
    return chosen


def read_seeds(folder: Path) -> list[Seed]:
    """The seeds that another process made in ``folder``."""
    rows = json.loads((folder / "seeds.json").read_text())
    return [Seed(Path(path), kind, target) for path, kind, target in rows]
