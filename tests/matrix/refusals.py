"""Which cells of the matrix are refused, and with what sentence: everything else must work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moeify.families.registry import DENSE_LAYOUTS, conversions_to

__all__ = ["REASONS", "UNLOADABLE", "Reason", "refusal"]

_SHARING = (
    "qwen2_moe",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "cohere2_moe",
    "lfm2_moe",
    "dots1",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
)
UNLOADABLE = ("gptq", "awq", "compressed-tensors")
_PACKED = ("mxfp4", "fp8", *UNLOADABLE)
_LOADS = (
    "warmup",
    "inspect --dataset",
    "prune --by frequency",
    "prune --by gate",
    "prune --by ean",
    "prune --by reap",
    "prune --eval",
    "prune --low-memory",
    "verify",
)


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
        letter="d",
        meaning="a dense checkpoint has no experts: `moeify upcycle` first",
        sentence="dense checkpoint|no mixture of experts",
        holds=lambda command, model_type, form: (
            model_type in DENSE_LAYOUTS and command not in ("upcycle", "inspect", "verify", "push")
        ),
    ),
    Reason(
        letter="m",
        meaning="it is a mixture already",
        sentence="mixture of experts already",
        holds=lambda command, model_type, form: model_type not in DENSE_LAYOUTS and command == "upcycle",
    ),
    Reason(
        letter="n",
        meaning="no dense class that moeify knows belongs to it",
        sentence="is not supported; known: bert_moe",
        holds=lambda command, model_type, form: (
            model_type not in DENSE_LAYOUTS
            and not conversions_to(model_type)
            and command in ("extract", "prune --dense")
        ),
    ),
    Reason(
        letter="o",
        meaning="several dense types become it, and no `moeify.json` says which one did",
        sentence="nothing says whether this .* was made of",
        holds=lambda command, model_type, form: (
            len(conversions_to(model_type)) > 1 and command in ("extract", "prune --dense")
        ),
    ),
    Reason(
        letter="s",
        meaning="its shared or null experts, or dense layers of another width, are no part of a dense class",
        sentence="has (shared|null) experts|no dense class has two widths|neurons together and config.json says",
        holds=lambda command, model_type, form: (
            (model_type in _SHARING or form == "null experts") and command in ("extract", "prune --dense")
        ),
    ),
    Reason(
        letter="q",
        meaning="quantised weights can be moved, not read or averaged",
        sentence="aimer cannot read quantised weights|quantised experts cannot be merged",
        holds=lambda command, model_type, form: form in _PACKED and command in ("prune --by aimer", "prune --merge"),
    ),
    Reason(
        letter="p",
        meaning="a dense checkpoint of quantised weights is not written",
        sentence="has no place in a dense .*use the unquantised checkpoint",
        holds=lambda command, model_type, form: form in _PACKED and command in ("extract", "prune --dense"),
    ),
    Reason(
        letter="t",
        meaning="trained weights cannot be written in the form of quantised ones",
        sentence="in which trained weights cannot be written",
        holds=lambda command, model_type, form: form in _PACKED and command == "warmup --train moe",
    ),
    Reason(
        letter="l",
        meaning="transformers needs a package for this quantisation",
        sentence="transformers cannot load .*install what reads this quantisation",
        holds=lambda command, model_type, form: form in UNLOADABLE and command in _LOADS,
    ),
)


def refusal(command: str, model_type: str, form: str) -> Reason | None:
    """Why this cell is refused; None where it must work."""
    return next((r for r in REASONS if r.holds(command, model_type, form)), None)
