"""Synthetic logs of several systems with labelled anomalies that counting words does not find.

A session begins, checks, works, flushes and ends, or only begins, checks and ends; check and work name the mode of
their system, and steps are retried at random. Anomalies are two steps in the wrong order, work without a flush or a
flush without work, and a mode that is another system's. Every word of an anomalous session also stands in normal ones.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

SYSTEMS = {
    "database": ("postgres", "table", "shared", ("lock", "verify", "update", "commit", "unlock")),
    "storage": ("raid", "volume", "exclusive", ("mount", "scan", "copy", "sync", "unmount")),
    "web": ("nginx", "request", "shared", ("accept", "parse", "render", "send", "close")),
    "cluster": ("slurmd", "job", "exclusive", ("allocate", "probe", "run", "collect", "release")),
}
"""Component, what it works on, its mode, and its verbs for begin, check, work, flush and end."""

MODES = ("shared", "exclusive")
KINDS = ("order", "missing", "parameter")
RETRIED = 0.15
BEGIN, CHECK, WORK, FLUSH, END = range(5)


def session(system: str, anomaly: str | None, draw: random.Random) -> list[str]:
    """The messages of one session; `anomaly` is one of `KINDS`, or None."""
    component, noun, mode, verbs = SYSTEMS[system]
    task = _task(mode, full=anomaly is not None or draw.random() < 0.7)
    if anomaly is not None:
        task = _spoilt(task, anomaly, draw)
    number, lines = draw.randint(1000, 99999), []
    for step, named in task:
        for _ in range(1 + (draw.random() < RETRIED)):
            lines.append(f"{component}: {named}{verbs[step]} {noun} {number} took {draw.randint(1, 900)} ms")
    return lines


def _task(mode: str, full: bool) -> list[tuple[int, str]]:
    """Steps and what stands before their verbs."""
    middle = [(CHECK, f"{mode} "), (WORK, f"{mode} "), (FLUSH, "")] if full else [(CHECK, f"{mode} ")]
    return [(BEGIN, ""), *middle, (END, "")]


def _spoilt(task: list[tuple[int, str]], anomaly: str, draw: random.Random) -> list[tuple[int, str]]:
    place = draw.choice((WORK, FLUSH))
    if anomaly == "order":
        task[place], task[place - 1] = task[place - 1], task[place]
    elif anomaly == "missing":
        del task[place]
    else:
        place = draw.choice((CHECK, WORK))
        other = next(mode for mode in MODES if mode != task[place][1].strip())
        task[place] = (place, f"{other} ")
    return task


def write(path: Path, sessions: int = 2000, anomalous: float = 0.1, seed: int = 0) -> Path:
    """Write a CSV with columns session, system, message, label (1 in every line of an anomalous session)."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("session", "system", "message", "label"))
        for number in range(sessions):
            system = draw.choice(list(SYSTEMS))
            anomaly = draw.choice(KINDS) if draw.random() < anomalous else None
            for message in session(system, anomaly, draw):
                table.writerow((number, system, message, int(anomaly is not None)))
    return path
