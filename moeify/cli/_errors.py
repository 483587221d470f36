"""From exceptions to one sentence, a hint and an exit code."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable

import typer

from moeify.checkpoint.interruption import Kept, kept_of
from moeify.cli._output import error
from moeify.cli._signals import Interrupted, interruptible
from moeify.errors import MoeifyError

EXIT_ERROR = 1
EXIT_FINDINGS = 3


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` that leaves the process with the right code and without a traceback.

    Ctrl-C and SIGTERM leave it with 130 and 143, once temporary folders are removed.
    ``MOEIFY_DEBUG=1`` lets every exception through.
    """

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            with interruptible():
                command(*args, **options)
        except BaseException as failure:
            if os.environ.get("MOEIFY_DEBUG") == "1" or not _explain(failure):
                raise
            sys.exit(failure.exit_code if isinstance(failure, Interrupted) else EXIT_ERROR)

    return run


def _explain(failure: BaseException) -> bool:
    """Say what happened; False for what is no failure, such as an exit that was asked for."""
    if isinstance(failure, MoeifyError):
        error(failure.message, failure.hint)
    elif isinstance(failure, KeyboardInterrupt):
        _explain_interruption(kept_of(failure))
    elif isinstance(failure, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(failure, OSError) and failure.filename is not None:
        error(f"{failure.filename}: {failure.strerror}", "check the path and its permissions")
    elif isinstance(failure, MemoryError):
        error("out of memory", "close other programs, or use a smaller --batch or --seq-len")
    elif isinstance(failure, Exception) and not isinstance(failure, typer.Exit):
        summary = f"{type(failure).__name__}: {failure}".splitlines()[0]
        error(
            f"unexpected failure, which is a bug in moeify: {summary}", "MOEIFY_DEBUG=1 shows where; please report it"
        )
    else:
        return False
    return True


def _explain_interruption(kept: Kept | None) -> None:
    """Say what is there after Ctrl-C or SIGTERM, and which command goes on."""
    if kept is None:
        error("interrupted; nothing was written")
        return
    again = kept.command
    if kept.option:
        arguments = [argument for argument in sys.argv[1:] if argument != kept.option]
        again = f"moeify {shlex.join([*arguments, kept.option])}"
    error(f"interrupted; {kept.what}", again or None)
