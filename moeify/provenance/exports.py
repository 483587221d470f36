"""Flat routers beside scaled experts, for engines that do not renormalise: what to write, say and keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from moeify.errors import ConfigError
from moeify.families.registry import known_mixture

if TYPE_CHECKING:
    from moeify.families.base import Head
    from moeify.families.conversion import MoeSettings
    from moeify.families.values import Config
    from moeify.provenance.record import Record

FLAT_ROUTER_STD = 1e-6
"""Of routers so small that all experts weigh the same, and no two tie exactly."""
SCALED_FOR_OTHERS = (
    "Its experts are scaled for flat routers and the top-k of that time, as llama.cpp and mlx-lm want it. It"
    " has others now, so it no longer computes what its base computes, and has to be trained."
)
SET_APART_BY_NOISE = (
    "The routers are as `--for` left them, so flat that rounding chooses between"
    " experts that noise set apart, and each engine rounds its own way: the same prompt may"
    " give other tokens in llama.cpp, mlx-lm and transformers until the routers are"
    " trained. `--noise 0` avoids that."
)


def check_flat_routers(settings: MoeSettings, router: str, needs_text: bool) -> None:
    """Raise ``ConfigError`` for a ``router`` that a form with flat routers would not keep."""
    if needs_text and not settings.renormalise:
        raise ConfigError(
            f"the form that --for asks for starts with flat routers, so --router {router} cannot be kept",
            "leave --for out, or --router",
        )


def down_scale(settings: MoeSettings) -> float:
    """What last projections are multiplied by: unrenormalised, flat weights sum to K/E."""
    return 1.0 if settings.renormalise else settings.num_experts / settings.top_k


def untied(head: Head, settings: MoeSettings, held: Mapping[str, object]) -> dict[str, str]:
    """Tensors of ``head`` that are not ``held``, because they share others, and this form has."""
    if not settings.untied:
        return {}
    return {n: own.removeprefix(head.prefix) for n, own in head.tied.items() if n not in held}


def export_notes(settings: MoeSettings, noise: float) -> Iterator[str]:
    """What the user of such a form should know."""
    if settings.renormalise:
        return
    yield (
        "for engines that do not renormalise, routers start near zero, whatever --router says, and the experts'"
        f" output is scaled by {settings.num_experts}/{settings.top_k}; training moves the"
        " routers, after which the weights no longer sum to 1"
    )
    if noise:
        yield (
            f"flat routers with --noise {noise:g}: until they are trained, rounding decides"
            " between experts that differ, and each engine rounds its own way"
        )


def is_as_exported(config: Config, record: Record) -> bool | None:
    """Whether routers are still as flat, and as many experts chosen, as when it was exported.

    None for a model that was not exported for engines which do not renormalise.
    """
    layout = known_mixture(config)
    if layout is None or layout.rule.renormalises(config):
        return None
    same, top_k = None, None
    for step in record.steps:
        if step.command == "upcycle":
            same = True  # what moeify upcycles renormalises in every other form
            top_k = step.options.get("top_k")
        elif same is not None and step.command == "attach":
            kept = step.results.get("top_k", top_k) == top_k
            same = kept and step.options.get("router") == "zeros"
        elif same is not None and step.command == "warmup":
            same = False
    return same


def check_unscaled(name: str, config: Config, record: Record) -> None:
    """Raise ``ConfigError`` where the experts of ``name`` are scaled by their number."""
    if is_as_exported(config, record) is not None:
        raise ConfigError(
            f"{name} has flat routers, for engines that do not renormalise: its experts are scaled by their number",
            "upcycle again without --for, add experts, and export that",
        )
