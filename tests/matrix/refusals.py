"""Which cells of the matrix are refused, and with what sentence: everything else must work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moeify.families.registry import FAMILIES

__all__ = ["REASONS", "Reason", "refusal"]

_OWN = ("bert_moe", "gpt2_moe")
_FROM_DENSE = (*_OWN, "qwen2_moe", "qwen3_moe")
_WARMED = (*_FROM_DENSE, "mixtral", "olmoe")
_UNLOADABLE = ("gptq", "awq", "compressed-tensors")
_PACKED = ("mxfp4", "fp8", *_UNLOADABLE)
_LOADS = (
    "warmup", "warmup --train moe", "inspect --dataset", "prune --by frequency", "prune --by gate",
    "prune --by ean", "prune --by reap", "prune --eval", "prune --low-memory", "verify",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why cells are refused: ``sentence`` is a pattern of what is said.

    ``holds`` takes command, model type and form.
    """

    letter: str
    meaning: str
    sentence: str
    holds: Callable[[str, str, str], bool]


REASONS = (
    Reason(
        letter="d", meaning="a dense checkpoint has no experts: `moeify upcycle` first",
        sentence="dense checkpoint|no mixture of experts",
        holds=lambda command, model_type, form: model_type in FAMILIES
        and command not in ("upcycle", "inspect", "verify", "push"),
    ),
    Reason(
        letter="m", meaning="it is a mixture already",
        sentence="mixture of experts already",
        holds=lambda command, model_type, form: model_type not in FAMILIES
        and command == "upcycle",
    ),
    Reason(
        letter="n", meaning="no dense class that moeify knows belongs to it",
        sentence="is not supported; known: bert_moe",
        holds=lambda command, model_type, form: model_type not in (*FAMILIES, *_FROM_DENSE)
        and command in ("extract", "prune --dense"),
    ),
    Reason(
        letter="w", meaning="warm-up knows no loss for this kind of routing yet",
        sentence="is not supported; known: bert_moe",
        holds=lambda command, model_type, form: model_type not in (*FAMILIES, *_WARMED)
        and command.startswith("warmup"),
    ),
    Reason(
        letter="s", meaning="its shared expert is no part of a dense class",
        sentence="shared expert of width",
        holds=lambda command, model_type, form: model_type == "qwen2_moe"
        and command in ("extract", "prune --dense"),
    ),
)  # fmt: skip


def refusal(command: str, model_type: str, form: str) -> Reason | None:
    """Why this cell is refused; None where it must work."""
    return next((r for r in REASONS if r.holds(command, model_type, form)), None)
