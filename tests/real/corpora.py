"""Real text in several domains, made once by `scripts/corpora.py` and cached."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .cache import REPOSITORY, built

_SCRIPT = REPOSITORY / "scripts" / "corpora.py"


def domains(
    names: Sequence[str] = ("english", "python", "german", "logs"), max_documents: int = 200, seed: int = 0
) -> list[dict[str, str]]:
    """Up to `max_documents` passages of each domain, shuffled, as {"text", "domain"}.

    Skips the test where there is no apt-get and the domain needs it.
    """
    draw = random.Random(seed)
    rows: list[dict[str, str]] = []
    for name in names:
        lines = corpus_file(name).read_text(encoding="utf-8").splitlines()
        rows += [json.loads(line) for line in draw.sample(lines, min(max_documents, len(lines)))]
    draw.shuffle(rows)
    return rows


def corpus_file(name: str) -> Path:
    """All passages of one domain as a .jsonl file."""
    if name != "python" and not shutil.which("apt-get"):
        pytest.skip(f"the {name} corpus comes from a Debian package, and apt-get is not here")
    return built(f"corpus-{name}", lambda folder: _make(name, folder)) / f"{name}.jsonl"


def _make(name: str, folder: Path) -> None:
    command = [sys.executable, str(_SCRIPT), str(folder), "--domains", name]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
