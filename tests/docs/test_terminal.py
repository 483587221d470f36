"""Pictures of terminals show what the commands print today."""

import subprocess
import sys

import pytest

from .pages import REPOSITORY


@pytest.mark.slow
def test_the_pictures_of_terminals_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/terminal.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
