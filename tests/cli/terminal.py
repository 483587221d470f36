"""Commands in a real terminal of a width, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Sequence

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])|\x1b.")


def run_in_terminal(command: Sequence[str], width: int, interrupt_at: str | None = None) -> tuple[int, str]:
    """Exit code of ``command`` and all that it sent to a terminal of ``width`` columns.

    Ctrl-C is pressed once the screen has shown ``interrupt_at``, a pattern.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("COLUMNS", None)
        os.environ.pop("NO_COLOR", None)
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    sent, pressed = b"", False
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # what Linux says when the other side is gone
            break
        if not part:
            break
        sent += part
        if interrupt_at is not None and not pressed and re.search(interrupt_at.encode(), sent):
            pressed = bool(os.write(terminal, b"\x03"))
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sent.decode("utf-8", "replace")


def words(sent: str) -> str:
    """What was sent without what moves the cursor and gives colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent)


def screen(sent: str, width: int) -> list[str]:
    """The lines that stand on the screen after ``sent``."""
    rows, y, x = [[" "] * width], 0, 0
    for found in _PARTS.finditer(sent):
        if found[2] == "A":
            y = max(0, y - int(found[1] or 1))
        elif found[2] == "K":
            rows[y] = [" "] * width if found[1] == "2" else rows[y][:x] + [" "] * (width - x)
        elif found[3]:
            x = 0
        elif found[4] or (found[5] and x == width):
            y, x = y + 1, 0
        if y == len(rows):
            rows.append([" "] * width)
        if found[5]:
            rows[y][x], x = found[5], x + 1
    return ["".join(row).rstrip() for row in rows]
