"""Ctrl-C and SIGTERM, held back while the disk is in a state that nobody should see, and what they leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays of interrupted work, as a sentence's part, and what goes on with it.

    That is ``command``, a whole one, or the one that was interrupted, with ``option``.
    """

    what: str
    option: str = ""
    command: str = ""


@contextmanager
def keeping(kept: Callable[[], Kept | None]) -> Iterator[None]:
    """A block whose interruption carries what ``kept`` finds afterwards, for whoever tells the user."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if (found := kept()) is not None:
            vars(stop)["kept"] = found
        raise


def kept_of(stop: BaseException) -> Kept | None:
    """What the outermost ``keeping`` block said that an interruption leaves."""
    found: Kept | None = vars(stop).get("kept")
    return found


class Interruptions:
    """A block in which signals wait, except in its ``allowed`` parts.

    What came meanwhile is handled at the next ``allowed`` part, or when the block ends. Only
    handlers written in Python are replaced, and only in the main thread, where alone they run.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
            self._hold()
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A part of the block in which signals interrupt as they do outside."""
        try:
            self._release()
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._waiting.append(number)

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._waiting:
            number = self._waiting[0]
            self._waiting.clear()
            self._handlers[number](number, None)
