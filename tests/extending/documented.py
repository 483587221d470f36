"""A package outside moeify, in a folder, whose module is an example of docs/extending.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import moeify

DOCS = Path(moeify.__file__).parents[1] / "docs" / "extending.md"


def example(section: str) -> str:
    """The Python of a section of docs/extending.md."""
    text = DOCS.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))


def installed(folder: Path, code: str, name: str = "outside") -> Path:
    """``folder`` as a place that Python imports from, with a package of one module in it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[moeify]\nmine = {name}\n")
    return folder


def run(place: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line where ``place`` is on Python's path."""
    path = os.pathsep.join([str(place), str(DOCS.parents[1])])
    return subprocess.run(
        [sys.executable, "-m", "moeify", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "160"},
    )
