"""What is installed is what is pinned, exactly and completely, as far as that can be known offline.

Walks everything that moeify, its extras and requirements-dev.txt need, and holds each package
against constraints.txt and against what its dependants ask for. No list of vulnerabilities is
consulted: none can be had without a network. docs/contributing.md says how to ask one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = {"triton", "nvidia"}  # of torch's accelerator builds, which the CPU build lacks


def read_pins(path: Path) -> dict[str, str]:
    """Version by package; raises ``SystemExit`` for a line that pins nothing exactly."""
    pins: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, exact, version = line.partition("==")
        if not exact or not version or "*" in version:
            raise SystemExit(f"{path.name}: {line!r} is no exact version")
        pins[canonicalize_name(name)] = version.strip()
    return pins


def problems(pins: dict[str, str], roots: list[str]) -> Iterator[str]:
    """Everything in which the environment differs from ``pins``."""
    waiting = [(Requirement(root), "moeify") for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted, by = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name.split("-")[0] in OPTIONAL or (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            yield f"{wanted.name}, which {by} needs, is not installed"
            continue
        version = found.version.partition("+")[0]
        if name not in ("moeify", "setuptools") and pins.get(name) != version:
            yield f"{wanted.name} {version} is installed, constraints.txt says {pins.get(name)}"
        if not wanted.specifier.contains(version, prereleases=True):
            yield f"{by} needs {wanted}, {version} is installed"
        for text in found.requires or ():
            inner = Requirement(text)
            extras = wanted.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                waiting.append((inner, wanted.name))


def main() -> None:
    """Print every problem; exit with 1 where there is one."""
    pins = read_pins(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "constraints.txt")
    listed = (ROOT / "requirements-dev.txt").read_text().splitlines()
    roots = ["moeify[all]", *(line for line in listed if line and not line.startswith("#"))]
    found = list(problems(pins, roots))
    print("\n".join(found) or f"{len(pins)} pins, all of them as installed or not needed here")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
