"""Tensors that hold several others one after the other, as a class has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moeify.errors import CheckpointError

if TYPE_CHECKING:
    from moeify.checkpoint.jobs import Job

Joined = Mapping[str, tuple[str, ...]]
"""Whole tensors by name, and the parts whose rows they hold, relative to a layer."""


def whole_name(name: str, joined: Joined) -> str | None:
    """The tensor that holds the one called ``name``, full or relative; None for one that stands alone."""
    for whole, parts in joined.items():
        for part in parts:
            if name == part or name.endswith(f".{part}"):
                return name.removesuffix(part) + whole
    return None


def joined_shapes(shapes: Mapping[str, tuple[int, ...]], joined: Joined) -> dict[str, tuple[int, ...]]:
    """``shapes`` by name, those of parts as the one of the whole."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        whole = whole_name(name, joined)
        if whole is None:
            found[name] = shape
        else:
            rows = found[whole][0] if whole in found else 0
            found[whole] = (rows + shape[0], *shape[1:])
    return found


def joined_jobs(jobs: Iterator[Job], joined: Joined) -> Iterator[Job]:
    """Jobs, those of tensors that a class has in one as one.

    Raises ``CheckpointError`` for parts of several dtypes.
    """
    held: dict[str, dict[str, Job]] = {}
    for job in jobs:
        name = whole_name(job.name, joined)
        if name is None:
            yield job
            continue
        parts = next(parts for whole, parts in joined.items() if name == whole or name.endswith(f".{whole}"))
        found = held.setdefault(name, {})
        found[next(part for part in parts if job.name.endswith(part))] = job
        if len(found) == len(parts):
            ordered = [found[part] for part in parts]
            if len({part.dtype for part in ordered}) > 1:
                raise CheckpointError(f"the parts of {name!r} have several dtypes: it has one")
            rows = sum(part.shape[0] for part in ordered)
            pieces = tuple(piece for part in ordered for piece in part.pieces)
            yield replace(job, name=name, shape=(rows, *job.shape[1:]), pieces=pieces)
