"""What a command says: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeify.cli._progress import Bars, Lines
from moeify.cli._text import plain, unmarked
from moeify.progress import watch_progress

_NOT_ASCII = re.compile(r"[^\x20-\x7e\n]+")
_NOT_PLAIN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]+"
)
"""Control characters, and those that turn or hide text."""


def _escaped(found: re.Match[str]) -> str:
    """Characters of a JSON text as escapes, where they are not for printing."""
    return "".join(c if c.isprintable() and c.isascii() else json.dumps(c)[1:-1] for c in found[0])


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
        self._shown: Bars | Lines | None = None
        self._stdout = sys.stdout
        self._out = Console(file=self._stdout, highlight=False, emoji=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        # huggingface_hub draws bars of its own wherever this is not set before its import.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def document(self, document: dict[str, Any], warnings: Sequence[str] = ()) -> None:
        """The one JSON document of ``--json``, and what the user should know of it."""
        self._clear()
        if self.as_json:
            text = json.dumps(document, indent=2, ensure_ascii=False)
            # Text from files must not steer the terminal, and must fit into its encoding.
            ascii_only = (self._stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
            pattern = _NOT_ASCII if ascii_only else _NOT_PLAIN
            self._stdout.write(pattern.sub(_escaped, text) + "\n")
        for warning in warnings:
            self.warning(warning)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Name and value pairs; what has no value has no row."""
        if self.as_json or self.quiet:
            return
        self._clear()
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
        self._clear()
        self._out.print(f"\n[bold]{plain(title)}[/]")
        self._out.print(table)

    @property
    def coloured(self) -> bool:
        """Whether what is printed may say something by its colour: sixteen are too few to tell experts apart."""
        return self._out.color_system in ("256", "truecolor") and not self._out.no_color

    def paragraph(self, title: str, parts: Sequence[tuple[str, str | None]]) -> None:
        """A heading, where there is one, and text that is made of parts with styles; a part may end its line."""
        if self.as_json or self.quiet:
            return
        self._clear()
        if title:
            self._out.print(f"\n[bold]{plain(title)}[/]", soft_wrap=True)
        text = Text(overflow="fold")
        for words, style in parts:
            line = words.removesuffix("\n")
            text.append(unmarked(line), style)
            text.append("\n" if line != words else "")
        self._out.print(text)

    def lines(self, title: str, lines: Sequence[str]) -> None:
        """A heading and sentences under it."""
        if self.as_json or self.quiet or not lines:
            return
        self._clear()
        self._out.print(f"\n[bold]{plain(title)}[/]", soft_wrap=True)
        for line in lines:
            self._out.print(plain(f"- {line}"))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A block whose stages are shown on stderr: as bars, or in a log as lines.

        What libraries print, as trackio does, goes there as well.
        """
        bars = self._err.is_terminal
        with redirect_stdout(sys.stderr):
            if self.quiet or (self.as_json and not bars):
                yield
                return
            self._shown = Bars() if bars else Lines(self._err)
            try:
                self._shown.begin()
                with watch_progress(self._shown):
                    yield
            finally:
                self._shown.clear()
                self._shown = None

    def _clear(self) -> None:
        """Take bars away before something is printed."""
        if self._shown is not None:
            self._shown.clear()

    def warning(self, text: str) -> None:
        """Something the user should know, on stderr."""
        if not self.quiet:
            self._clear()
            self._err.print(f"[yellow]warning:[/] {plain(text)}")

    def notice(self, text: str) -> None:
        """Something that was done besides the command's own work, on stderr."""
        if not self.quiet:
            self._clear()
            self._err.print(plain(text))

    def hint(self, text: str) -> None:
        """What to do next, on stderr."""
        if not (self.quiet or self.as_json):
            self._clear()
            self._err.print(f"[dim]next:[/] {plain(text)}")
