"""Which cells of the matrix are refused, and with what sentence: everything else must work."""

from __future__ import annotations

from moeify.families.registry import FAMILIES

__all__ = ["refusal"]

_DENSE_ONLY = ("upcycle",)
_ANY = ("inspect", "verify", "push")


def refusal(command: str, model_type: str, form: str) -> str | None:
    """A pattern of the sentence that refuses this cell; None where it must work."""
    dense = model_type in FAMILIES
    if dense and command not in (*_DENSE_ONLY, *_ANY):
        return "dense checkpoint|no mixture of experts"
    if not dense and command in _DENSE_ONLY:
        return "mixture of experts already"
    return None
