"""What a command says: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

_LONGEST = 4000
_TOKEN = re.compile(r"hf_\w{8,}")
_NOT_ASCII = re.compile(r"[^\x20-\x7e\n]+")
_NOT_PLAIN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]+"
)
"""Control characters, and those that turn or hide text."""


def plain(text: object) -> str:
    """``text`` as one line that is safe to print, whatever it holds.

    Control characters, rich markup and tokens are made harmless, the home folder becomes ``~``,
    and what is longer than a screen is cut.
    """
    said = _private(str(text))
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]}... ({len(said)} characters)"
    return escape("".join(c if c.isprintable() else "\ufffd" for c in said))


def _private(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"(?<![\w/.-]){re.escape(home)}(?=/|$|[\s,:;'\")])", "~", text)
    return _TOKEN.sub("hf_***", text)


def _escaped(found: re.Match[str]) -> str:
    """Characters of a JSON text as escapes, where they are not for printing."""
    return "".join(c if c.isprintable() and c.isascii() else json.dumps(c)[1:-1] for c in found[0])


def size(nbytes: float) -> str:
    """Bytes for people: 5.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def written(nbytes: int, linked: int, copied: int) -> str:
    """What became of a checkpoint's files: 8.6 kB written, 1 file linked."""
    beside = f", {_files(copied)} copied" if copied else ""
    return f"{size(nbytes)} written, {_files(linked)} linked{beside}"


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


def count(number: float) -> str:
    """A number of parameters for people: 109.5M."""
    for unit in ("", "K", "M", "B"):
        if abs(number) < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}T"


def loss(value: float, error: float | None) -> str:
    """A loss with its standard error, no more digits than that supports."""
    if error is None:
        return f"{value:#.5g}"
    digits = min(max(2, 1 - math.floor(math.log10(error))), 6) if error > 0 else 6
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def bar(fraction: float, width: int = 12) -> str:
    """``fraction`` of ``width`` characters filled, in eighths."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    partial: str = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[rest]
    return "\u2588" * full + partial.strip()


def spark(values: Sequence[float]) -> str:
    """A character for each value, as high as the value is of twice the even share, 1."""
    steps = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    return "".join("\u00b7" if value < 0.1 else steps[min(int(value * 4), len(steps) - 1)] for value in values)


def error(message: str, hint: str | None = None) -> None:
    """Print a failure and how to mend it on stderr."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print(f"[bold red]error:[/] {plain(message)}")
    if hint:
        console.print(f"[bold]hint:[/] {plain(hint)}")


class Output:
    """How one command reports, as ``--json`` and ``--quiet`` ask for it."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._out = Console(highlight=False, emoji=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        if quiet or not self._err.is_terminal:
            # huggingface_hub draws bars of its own wherever this is not set before its import.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def document(self, document: dict[str, Any], warnings: Sequence[str] = ()) -> None:
        """The one JSON document of ``--json``, and what the user should know of it."""
        if self.as_json:
            text = json.dumps(document, indent=2, ensure_ascii=False)
            # Text from files must not steer the terminal, and must fit into its encoding.
            ascii_only = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
            pattern = _NOT_ASCII if ascii_only else _NOT_PLAIN
            sys.stdout.write(pattern.sub(_escaped, text) + "\n")
        for warning in warnings:
            self.warning(warning)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Name and value pairs; what has no value has no row."""
        if self.as_json or self.quiet:
            return
        self._out.print(f"[bold]{plain(title)}[/]", soft_wrap=True)
        table = Table(show_header=False, box=None)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            if value:
                table.add_row(plain(name), plain(value))
        self._out.print(table)

    def grid(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """Rows under headings; the first ``left`` columns hold words, the others numbers.

        Words give way where the terminal is narrow, numbers never break.
        """
        if self.as_json or self.quiet:
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place, name in enumerate(columns):
            words = place < left or not name  # a column without a name holds bars
            table.add_column(
                plain(name),
                justify="left" if words else "right",
                no_wrap=not words,
                overflow="fold" if words else "ellipsis",
                style="cyan" if place == 0 else None,
            )
        for row in rows:
            table.add_row(*map(plain, row))
        self._out.print(f"\n[bold]{plain(title)}[/]")
        self._out.print(table)

    def lines(self, title: str, lines: Sequence[str]) -> None:
        """A heading and sentences under it."""
        if self.as_json or self.quiet or not lines:
            return
        self._out.print(f"\n[bold]{plain(title)}[/]", soft_wrap=True)
        for line in lines:
            self._out.print(plain(f"- {line}"))

    @contextmanager
    def steps_bar(self, label: str) -> Iterator[Callable[[str, int, int], None] | None]:
        """A progress bar over named steps, where stderr is a terminal."""
        if self.quiet or not self._err.is_terminal:
            yield None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(plain(label), total=None)
            yield lambda what, done, total: bar.update(task, description=plain(what), completed=done, total=total)

    def warning(self, text: str) -> None:
        """Something the user should know, on stderr."""
        if not self.quiet:
            self._err.print(f"[yellow]warning:[/] {plain(text)}")

    def notice(self, text: str) -> None:
        """Something that was done besides the command's own work, on stderr."""
        if not self.quiet:
            self._err.print(plain(text))

    def hint(self, text: str) -> None:
        """What to do next, on stderr."""
        if not (self.quiet or self.as_json):
            self._err.print(f"[dim]next:[/] {plain(text)}")

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """A spinner for work of unknown length, where stderr is a terminal."""
        if self.quiet or not self._err.is_terminal:
            yield
            return
        with self._err.status(plain(text)):
            yield

    @contextmanager
    def bytes_bar(self, label: str) -> Iterator[Callable[[int, int], None] | None]:
        """A progress bar in bytes with rate and time left, where stderr is a terminal."""
        if self.quiet or not self._err.is_terminal:
            yield None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(plain(label), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
