"""Logs as labelled windows of lines: published formats and CSV, variables masked, split in time order."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

BLOCK = re.compile(r"blk_-?\d+")
VARIABLES = re.compile(
    r"blk_-?\d+|0x[0-9a-fA-F]+|\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b|(?:/[\w.\-]+)+/?|\b[0-9a-f]{8,}\b|-?\b\d+(?:\.\d+)?\b"
)
HEADERS = {"BGL": 9, "Thunderbird": 8, "HDFS": 5}  # fields before the message, the label in front included


@dataclass(frozen=True)
class Window:
    """Lines that are judged together: `label` is 1 where they are anomalous, `system` is where they come from."""

    lines: tuple[str, ...]
    label: int
    system: str


def masked(message: str) -> str:
    """A message with `<*>` for numbers, addresses, paths and ids."""
    return VARIABLES.sub("<*>", message).strip()


def read(place: Path, lines_per_window: int = 100) -> list[Window]:
    """The windows of a file or folder, in time order.

    A folder that holds `anomaly_label.csv` is HDFS (a window for each block id), a file or folder named after BGL or
    Thunderbird has a label in front of every line ("-" is normal), and a CSV has columns message and label and, where
    there are any, session and system.
    """
    if place.is_dir() and (labels := place / "anomaly_label.csv").exists():
        return list(_hdfs(next(place.glob("*.log")), labels))
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    tables = [file for file in files if file.suffix == ".csv"]
    if tables:
        return [window for file in tables for window in _table(file, lines_per_window)]
    named = [(file, name) for file in files for name in ("BGL", "Thunderbird") if name.lower() in file.name.lower()]
    if not named:
        raise SystemExit(f"{place}: no CSV, no anomaly_label.csv, and no file named after BGL or Thunderbird")
    return [window for file, name in named for window in _lines(file, name, lines_per_window)]


def _lines(file: Path, name: str, size: int) -> Iterator[Window]:
    with file.open(errors="replace") as lines:
        rows = (line.split(maxsplit=HEADERS[name]) for line in lines if line.strip())
        yield from _windows(((masked(row[-1]), int(row[0] != "-")) for row in rows), size, name)


def _hdfs(log: Path, labels: Path) -> Iterator[Window]:
    with labels.open() as file:
        label = {row["BlockId"]: int(row["Label"] != "Normal") for row in csv.DictReader(file)}
    blocks: dict[str, list[str]] = {}
    with log.open(errors="replace") as lines:
        for line in lines:
            message = masked(line.split(maxsplit=HEADERS["HDFS"])[-1])
            for block in dict.fromkeys(BLOCK.findall(line)):
                blocks.setdefault(block, []).append(message)
    for block, messages in blocks.items():  # in the order in which they begin
        yield Window(tuple(messages), label.get(block, 0), "HDFS")


def _table(file: Path, size: int) -> Iterator[Window]:
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"message", "label"} <= rows[0].keys():
        raise SystemExit(f"{file}: a CSV of logs needs the columns message and label")
    if "session" not in rows[0]:
        name = rows[0].get("system", file.stem)
        yield from _windows(((masked(row["message"]), int(row["label"])) for row in rows), size, name)
        return
    for _, group in groupby(rows, key=lambda row: row["session"]):
        held = list(group)
        label = max(int(row["label"]) for row in held)
        yield Window(tuple(masked(row["message"]) for row in held), label, held[0].get("system", file.stem))


def _windows(rows: Iterable[tuple[str, int]], size: int, system: str) -> Iterator[Window]:
    held = list(rows)
    for first in range(0, len(held), size):
        part = held[first : first + size]
        yield Window(tuple(line for line, _ in part), max(label for _, label in part), system)


def split(windows: list[Window], training: float = 0.8) -> tuple[list[Window], list[Window]]:
    """The first windows for training, those after them for testing."""
    cut = round(training * len(windows))
    return windows[:cut], windows[cut:]


def oversampled(windows: list[Window], share: float = 0.5, seed: int = 0) -> list[Window]:
    """The windows and copies of the rarer class, so that it makes up at least `share`, shuffled."""
    classes = [[window for window in windows if window.label == label] for label in (0, 1)]
    rare, common = sorted(classes, key=len)
    if not rare:
        raise SystemExit("all training windows have the same label: nothing can be learned from them")
    wanted = round(len(common) * share / (1 - share))
    draw = random.Random(seed)
    copies = [draw.choice(rare) for _ in range(wanted - len(rare))]
    found = [*windows, *copies]
    draw.shuffle(found)
    return found
