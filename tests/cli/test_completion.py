"""Shell completion of commands, options and choices, which must be as light as help is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import moeify

COMPLETE = """
import sys
from moeify.__main__ import main
sys.argv = ["moeify"]
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "transformers", "datasets", "numpy", "huggingface_hub"} & set(sys.modules)
print("HEAVY", *sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("moeify up", ["upcycle"]),
        ("moeify upcycle --rou", ["--router", "--route-by", "--router-bias"]),
        ("moeify upcycle --router ", ["calibrated", "normal", "zeros", "prompts", "data"]),
        ("moeify prune moe --by r", ["reap", "random"]),
        ("moeify extract moe --by ai", ["aimer"]),
    ],
)
def test_completion_is_light(line: str, expected: list[str]) -> None:
    words = line.split(" ")
    env = {**os.environ, "_MOEIFY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([sys.executable, "-c", COMPLETE], capture_output=True, text=True, env=env)
    assert done.stdout.split() == expected
    assert done.stderr.strip() == "HEAVY"


def test_the_script_for_a_shell_is_shown_and_installed(tmp_path: Path) -> None:
    # Which shell calls depends on who runs the tests: here it is named.
    told = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = moeify("--show-completion", "bash", **told)
    assert "complete -o default -F _moeify_completion moeify" in shown.stdout
    done = moeify("--install-completion", "bash", **told)
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_MOEIFY_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
