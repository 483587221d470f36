"""Ctrl-C and SIGTERM: what they do before, during and after a command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; its number decides the exit code, 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number


def leave_at_once() -> None:
    """Let signals end the process without a traceback, as long as no command has begun."""
    for number in _SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    os.write(2, b"error: interrupted before the command began\n")
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[None]:
    """A block in which signals raise ``Interrupted``, so that what was begun is cleaned up."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    sys.unraisablehook = _insist
    try:
        yield
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def _insist(dropped: Any) -> None:
    """Send a signal again whose exception Python dropped, as it does in destructors."""
    if isinstance(dropped.exc_value, Interrupted):
        again = (os.getpid(), dropped.exc_value.number)
        threading.Timer(0.01, os.kill, again).start()  # by then the destructor is over
    else:
        sys.__unraisablehook__(dropped)
