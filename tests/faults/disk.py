"""A disk that is full or broken, made by a library that stands before libc."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.killing import tree
from tests.faults.processes import Ended, Nursery, Place
from tests.faults.scenarios import Scenario

__all__ = ["Disk", "check_refusal", "compile_disk"]

_CALLS = ("mkdir", "create", "open", "rename")
_CODES = (errno.EIO, errno.EACCES, errno.EROFS, errno.ENOSPC)


def compile_disk(folder: Path) -> Path:
    """The library, compiled; torch.compile needs a compiler too, so there is one."""
    source, library = Path(__file__).with_name("broken_disk.c"), folder / "broken_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass(kw_only=True)
class Disk:
    """Runs commands on a disk that fails; ``nursery`` was started with the library."""

    nursery: Nursery
    folder: Path
    count: int = 0

    def run(self, scenario: Scenario, below: Path | None = None, **faults: object) -> Ended:
        """Run a command in a fresh folder, ``place``, with faults there or ``below`` another."""
        self.count += 1
        place = self.place
        place.mkdir()
        variables = {f"DISK_{name.upper()}": str(value) for name, value in faults.items()}
        variables["DISK_BELOW"] = str(below or place)
        return self.nursery.start(Place(folder=place, environment=variables), scenario.line("out")).wait()

    @property
    def place(self) -> Path:
        """Where the last command ran."""
        return self.folder / f"disk-{self.count}"

    def refuse(self, scenario: Scenario, below: Path | None = None, **faults: object) -> str:
        """Run a command that must fail cleanly, and return its sentence."""
        before = tree(scenario.source)
        ended = self.run(scenario, below, **faults)
        told = f"{scenario.name} {faults}: {ended.code} {ended.stderr}"
        sentence = check_refusal(ended, told)
        assert tree(scenario.source) == before, told
        left = {path.name for path in self.place.iterdir()} - set(scenario.resumes)
        assert not left, f"{told}\nleft {left}"
        shutil.rmtree(self.place)
        return sentence

    def anywhere(self, scenario: Scenario, written: int, rng: random.Random) -> str:
        """One random fault that a command must refuse or survive; returns its name."""
        kind = rng.choice(("full", "write", "read", "sync", "call"))
        faults: dict[str, object] = {
            "full": {"room": rng.randrange(written)},
            "write": {"write": rng.randint(1, 12)},
            "read": {"read": rng.randint(1, 12)},
            "sync": {"sync": rng.randint(1, 8)},
            "call": {"call": f"{rng.choice(_CALLS)}:{rng.randint(1, 8)}:{rng.choice(_CODES)}"},
        }[kind]
        below = scenario.source if kind == "read" else None
        before = tree(scenario.source)
        ended = self.run(scenario, below, **faults)
        told = f"{scenario.name} {faults}: {ended.code} {ended.stderr}"
        names = {path.name for path in self.place.iterdir()} - set(scenario.resumes)
        if ended.code == 0:  # the fault was not reached, or there was another way
            assert names == {"out"}, f"{told}\n{names}"
        else:
            check_refusal(ended, told)
            assert not names, f"{told}\nleft {names}"
        assert tree(scenario.source) == before, told
        shutil.rmtree(self.place)
        return kind if ended.code else f"{kind} (survived)"


def check_refusal(ended: Ended, told: str) -> str:
    """One sentence and perhaps a hint on stderr, nothing on stdout, exit code 1."""
    assert ended.code == 1, told
    assert ended.stdout == "", told
    assert "Traceback" not in ended.stderr and "error: " in ended.stderr, told
    # Before that torch and transformers may have warned of something else.
    lines = ("error: " + ended.stderr.partition("error: ")[2]).splitlines()
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), told
    assert "bug in moeify" not in lines[0], told
    return lines[0].removeprefix("error: ")
