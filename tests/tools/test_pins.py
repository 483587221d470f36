"""The audit of the pins notices a version that is not pinned, not installed, or pinned loosely."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "check_pins.py"), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("safetensors==", "safetensors==0.0.1 # ", "safetensors"),
        ("rich==", "richer==", "rich"),
        ("numpy==", "numpy>=", "no exact version"),
        ("idna==", "idna==3.* # ", "no exact version"),
    ],
)
def test_a_pin_that_does_not_hold(tmp_path: Path, before: str, after: str, said: str) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    (tmp_path / "pins.txt").write_text(pins.replace(before, after))
    done = check(tmp_path / "pins.txt")
    assert done.returncode == 1 and said in done.stdout + done.stderr
