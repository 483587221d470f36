"""What long work says of itself: stages, which whoever called it may watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Watcher = Callable[["Stage"], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("moeify_watcher", default=None)


@dataclass(kw_only=True, eq=False)
class Stage:
    """A part of the work: ``done`` of ``total`` ``unit``s, total None where nobody can know.

    Without a unit the parts have no name, and their fraction says most. ``figures`` are what is
    known by the way, such as the loss of a training. It is ``over`` when it ended, ``failed`` by an
    exception or not. The same object is shown each time.
    """

    name: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    over: bool = False
    failed: bool = False
    watcher: Watcher | None = field(default=None, repr=False)

    def advance(self, by: int = 1) -> None:
        """Say that ``by`` units more are done."""
        self.reach(self.done + by)

    def reach(self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None) -> None:
        """Say that ``done`` units are done, and what else is known by now."""
        self.done = done
        self.total = self.total if total is None else total
        self.figures = self.figures if figures is None else figures
        self._tell()

    def _tell(self) -> None:
        if self.watcher is not None:
            self.watcher(self)


@contextmanager
def watch_progress(watcher: Watcher) -> Iterator[None]:
    """A block in which ``watcher`` is called with every ``Stage`` that begins, moves or ends.

    With ``with moeify.watch_progress(print): moeify.upcycle(...)`` a script sees what the command
    line shows as bars. Calls come from the thread that does the work, sometimes from others.
    """
    before = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(before)


@contextmanager
def stage(name: str, total: int | None = None, unit: str = "") -> Iterator[Stage]:
    """A block of work that whoever watches sees as ``name``."""
    begun = Stage(name=name, total=total, unit=unit, watcher=_WATCHER.get())
    begun._tell()
    try:
        yield begun
    except BaseException:
        begun.failed = True
        raise
    finally:
        begun.over = True
        begun._tell()
