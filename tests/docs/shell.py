"""A process that has imported most of what ``moeify`` needs, and runs each command in a child of its own."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import moeify
from moeify.__main__ import main

HANGS = 600
"""Seconds after which a command is killed, which then has the exit code -14."""

_LIBRARIES = (
    "datasets",
    "transformers.trainer",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
)


class Shell:
    """Runs command lines as a shell would, without the seconds that imports take."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", __name__]
        self._server = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: Sequence[str], place: Path) -> tuple[int, str]:
        """The exit code of ``words`` in the folder ``place``, and what they print."""
        assert self._server.stdin is not None and self._server.stdout is not None
        printed = place / ".printed"
        print(json.dumps([list(words), str(place), str(printed)]), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline()), printed.read_text("utf-8")

    def close(self) -> None:
        self._server.communicate(timeout=60)


def _serve() -> None:
    for found in pkgutil.walk_packages(moeify.__path__, "moeify."):
        importlib.import_module(found.name)
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children need not look at it
    for line in sys.stdin:
        words, place, printed = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(words, place, printed)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(words: list[str], place: str, printed: str) -> None:
    signal.alarm(HANGS)
    os.chdir(place)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = words
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))  # to take all the modules down takes longer than most commands


if __name__ == "__main__":
    _serve()
