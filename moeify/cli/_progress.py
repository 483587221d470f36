"""Stages of long work as they are shown: bars on a terminal, a line each in a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from moeify.cli._text import duration, number, plain, size
from moeify.progress import Stage

_KEPT = 3
"""Stages that are over and stay to be seen."""
_WORTH_KEEPING = 0.5
_WORTH_A_LINE = 10.0
"""Seconds that a stage lasts at least to stay to be seen, or to be a line in a log."""


class Bars:
    """A terminal's view: one row for each stage, and for the last ones that are over.

    Nothing of it stays once ``clear`` was called, and the next stage begins anew.
    """

    def __init__(self) -> None:
        self._idle: TaskID | None = None
        # Not the console of messages, whose long lines would not be cut.
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._bars: _Bars | None = None
        self._rows: dict[int, tuple[TaskID, float]] = {}
        self._over: deque[tuple[str, TaskID]] = deque()

    def begin(self) -> None:
        """Show that something is done before the first stage begins: libraries take seconds to load."""
        self._idle = self._started().add_task("starting", total=None, stage=Stage(name="starting"))

    def __call__(self, stage: Stage) -> None:
        """Show how far ``stage`` is."""
        if stage.total == 0:
            return
        bars = self._started()
        if self._idle is not None:
            bars.remove_task(self._idle)
            self._idle = None
        if id(stage) not in self._rows:
            self._forget(stage.name)
            row = bars.add_task(plain(stage.name), total=stage.total, stage=stage)
            self._rows[id(stage)] = (row, time.monotonic())
        row, begun = self._rows[id(stage)]
        bars.update(row, completed=stage.done, total=stage.total)
        if stage.over:
            del self._rows[id(stage)]
            self._end(row, stage, time.monotonic() - begun)
            if not self._rows:
                self._idle = bars.add_task("working", total=None, stage=Stage(name="working"))

    def clear(self) -> None:
        """Take the bars away, before something else is printed."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._idle = None
        self._rows.clear()
        self._over.clear()

    def _started(self) -> _Bars:
        if self._bars is None:
            self._bars = _Bars(*_columns(), console=self._console, transient=True)
            self._bars.start()
        return self._bars

    def _end(self, row: TaskID, stage: Stage, spent: float) -> None:
        assert self._bars is not None
        if stage.failed or spent < _WORTH_KEEPING:
            self._bars.remove_task(row)
            return
        done = max(stage.done, 1)
        self._bars.update(row, completed=done, total=done)
        self._over.append((stage.name, row))
        if len(self._over) > _KEPT:
            self._bars.remove_task(self._over.popleft()[1])

    def _forget(self, name: str) -> None:
        """Take away what is over and comes again."""
        assert self._bars is not None
        for entry in [entry for entry in self._over if entry[0] == name]:
            self._over.remove(entry)
            self._bars.remove_task(entry[1])


class Lines:
    """A log's view: a line for each stage that took long, once it is over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun: dict[int, float] = {}

    def __call__(self, stage: Stage) -> None:
        """Take note of ``stage``."""
        spent = time.monotonic() - self._begun.setdefault(id(stage), time.monotonic())
        if not stage.over:
            return
        del self._begun[id(stage)]
        if spent >= _WORTH_A_LINE and not stage.failed:
            known = [f"{stage.name}:", *filter(None, [_counted(stage)]), f"in {duration(spent)}"]
            figures = f", {_figures(stage)}" if stage.figures else ""
            self._console.print(plain(" ".join(known) + figures))

    def begin(self) -> None:
        """A log says nothing before something is done."""

    def clear(self) -> None:
        """Nothing of a log is taken away."""


class _Bars(Progress):
    """rich's bars, with the figures of the stage that runs in a line below its bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        running = [task.fields["stage"] for task in self.tasks if not task.finished]
        if running and running[-1].figures:
            yield Text(f"  {_figures(running[-1])}", style="dim", no_wrap=True, overflow="ellipsis")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How much of the stage is done, in its own units."""
        return Text(_counted(task.fields["stage"]), style="cyan", no_wrap=True, justify="right")


class _Time(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The time that is left, or once it is over the time that was spent."""
        if task.finished:
            return Text(duration(task.finished_time or 0), style="dim", no_wrap=True)
        left = task.time_remaining
        return Text(f"{duration(left)} left" if left is not None else duration(task.elapsed or 0), no_wrap=True)


def _columns() -> tuple[Any, ...]:
    return (
        SpinnerColumn(finished_text="\u2713", style="cyan"),
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32)),
        BarColumn(bar_width=20),
        _Count(),
        _Time(),
    )


def _counted(stage: Stage) -> str:
    """``12 of 48 layers``; a fraction where parts have no name, nothing where nothing is known.

    What ended before its total, as a text that is short, is not measured by it.
    """
    total = None if stage.over and stage.done != stage.total else stage.total
    if not stage.unit:
        return f"{stage.done / total:.0%}" if total else ""
    if stage.unit == "bytes":
        return size(stage.done) + (f" of {size(total)}" if total else "")
    if not total and not stage.done:
        return ""
    return f"{stage.done:,}" + (f" of {total:,}" if total else "") + f" {stage.unit}"


def _figures(stage: Stage) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in stage.figures.items())
