"""Every command line of the pages for users runs, in order, in a folder that holds what a page takes for granted."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..cli.commands import ROOT
from ..hub.client import Client
from ..hub.stand_in import HubStandIn, running_hub
from .pages import DOCS, USER_PAGES, Line, command_lines
from .shell import Shell
from .stand_ins import make_checkpoints, prepare, publish

PAGES = {page.name: page for page in (*USER_PAGES, DOCS / "cli.md") if any(command_lines(page))}
QUICKSTART = PAGES.pop("quickstart.md")  # which test_quickstart.py runs
LEFT_OUT = {
    "make demo": "makes an environment, from a network",
    ".venv/bin/moeify --help": "of that environment",
    "torchrun --nproc-per-node 8 train.py": "the reader's own script, on eight GPUs",
    "accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
    "--num_processes 8 train.py": "the reader's own script, on eight GPUs",
    "torchrun --nproc-per-node 2 -m moeify": "several processes: tests/warming/test_training.py",
    "accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
    "--num_processes 2 -m moeify": "several processes: tests/warming/test_training.py",
    "hf auth login": "asks for a token",
    "moeify evaluate": "needs lm-evaluation-harness and data of the Hub: tests/evaluation",
    "python convert_hf_to_gguf.py": "another program: tests/engines",
    "llama-cli": "another program: tests/engines",
    "python -m mlx_lm": "another program: tests/engines",
    "vllm serve": "another program: tests/engines",
}
"""Beginnings of lines that are not run, and why."""


def words_of(line: Line) -> list[str]:
    return shlex.split(line.words, comments=True)


def left_out(line: Line) -> str | None:
    """The entry of ``LEFT_OUT`` that names a line."""
    words = words_of(line)
    return next((begin for begin in LEFT_OUT if words[: len(begin.split())] == begin.split()), None)


def lines_to_run(page: Path) -> list[Line]:
    return [line for line in command_lines(page) if left_out(line) is None]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    make_checkpoints(folder)
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with running_hub() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def shell(hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """That of a reader who is logged in at the Hub."""
    opened = Shell(Client(hub, tmp_path_factory.mktemp("home")).environment)
    yield opened
    opened.close()


def make_way(words: list[str], place: Path) -> None:
    """Remove what stands where a command writes: lines of a block are often alternatives."""
    output = ROOT.commands[words[1]].make_context(words[1], words[2:]).params.get("output")
    if output is not None and os.path.lexists(path := place / output):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


@pytest.mark.parametrize("page", [name for name, page in PAGES.items() if lines_to_run(page)])
def test_the_commands_of_a_page_run(
    page: str, shell: Shell, hub: HubStandIn, checkpoints: Path, tmp_path: Path
) -> None:
    """Trainings are cut to two steps."""
    publish(hub, checkpoints)
    prepare(tmp_path, checkpoints)
    for line in lines_to_run(PAGES[page]):
        words = words_of(line)
        make_way(words, tmp_path)
        trains = words[1] == "warmup" and "--steps 0" not in line.words
        code, printed = shell.run([*words, *["--steps", "2"] * trains], tmp_path)
        shown = [said for said in line.output if said.startswith(("error:", "hint:"))]
        allowed = {1} if shown else {0, 3} if "--fail-on" in words else {0}
        assert code in allowed, f"{line.words}\n{printed}"
        assert [said for said in shown if said not in printed.splitlines()] == [], f"{line.words}\n{printed}"


def test_nothing_else_is_left_out() -> None:
    lines = [line for page in PAGES.values() for line in command_lines(page)]
    assert {left_out(line) for line in lines} - {None} == LEFT_OUT.keys()
    others = [line.words for page in PAGES.values() for line in lines_to_run(page) if words_of(line)[0] != "moeify"]
    assert others == []
