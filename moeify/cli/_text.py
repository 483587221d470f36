"""Text for people: what is safe to print, and numbers, sizes and times as they are read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from rich.markup import escape

_LONGEST = 4000
_TOKEN = re.compile(r"hf_\w{8,}")


def plain(text: object) -> str:
    """``text`` as one line that is safe to print, whatever it holds.

    Control characters, rich markup and tokens are made harmless, the home folder becomes ``~``,
    and what is longer than a screen is cut.
    """
    return escape(unmarked(text))


def unmarked(text: object) -> str:
    """The same where markup means nothing."""
    said = _private(str(text))
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]}... ({len(said)} characters)"
    return "".join(c if c.isprintable() else "\ufffd" for c in said)


def _private(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"(?<![\w/.-]){re.escape(home)}(?=/|$|[\s,:;'\")])", "~", text)
    return _TOKEN.sub("hf_***", text)


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


def duration(seconds: float) -> str:
    """Seconds for people: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def number(value: float) -> str:
    """A figure for people: 3.4123, 9.5e-04, 12.3K."""
    if not value:
        return "0"
    if abs(value) >= 1000:
        return count(value)
    return f"{value:#.4g}" if abs(value) >= 0.01 else f"{value:.1e}"
