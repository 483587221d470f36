"""Whether what is on the Hub is an earlier state of the checkpoint that is pushed."""

from __future__ import annotations

from typing import Any

from moeify.provenance.record import Record


def describe_difference(ours: Record | None, theirs: Record | None) -> str | None:
    """In what way ``theirs``, on the Hub, is a different model; None where it is the same.

    It is the same model when both come from one dense model by the same first step: warmed up,
    pruned or given other routers since, it is a new version of itself.
    """
    if theirs is None or not theirs.steps:
        return "it was not made by moeify"
    if ours is None or not ours.steps:
        return f"it was made from {theirs.source}, and this checkpoint has no moeify.json"
    if (ours.source, ours.revision) != (theirs.source, theirs.revision):
        return f"it was made from {_named(theirs)}, and this one from {_named(ours)}"
    first, other = ours.steps[0], theirs.steps[0]
    if first.command != other.command:
        return f"it started with {other.command}, and this one with {first.command}"
    if changed := _changed(first.options, other.options):
        return f"it was made with other options: {', '.join(changed)}"
    return None


def _named(record: Record) -> str:
    return record.source + (f" at {record.revision[:8]}" if record.revision else "")


def _changed(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    keys = sorted({*ours, *theirs} - {"max_shard_size", "revision"})
    return [
        f"{key} {theirs.get(key)!r} instead of {ours.get(key)!r}" for key in keys if ours.get(key) != theirs.get(key)
    ][:3]
