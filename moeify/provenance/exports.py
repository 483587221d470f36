"""`--compat gguf`: who may be written so, what it changes, what to say, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from moeify.errors import ConfigError

if TYPE_CHECKING:
    from moeify.families.base import Head
    from moeify.families.conversion import Conversion, MoeSettings
    from moeify.provenance.record import Record

FLAT_ROUTER_STD = 1e-6
"""Of routers so small that all experts weigh the same, and no two tie exactly."""
SCALED_FOR_OTHERS = (
    "`--compat gguf` scaled the experts for flat routers and the top-k of that time. It has others"
    " now, so it no longer computes what its base computes, and has to be trained."
)
SET_APART_BY_NOISE = (
    "The routers are as `--compat gguf` left them, so flat that rounding chooses between"
    " experts that noise set apart, and each engine rounds its own way: the same prompt may"
    " give other tokens in llama.cpp, mlx-lm and transformers until the routers are"
    " trained. `--noise 0` avoids that."
)


def renormalises(conversion: Conversion, compat: str, layers: str, every_layer: bool) -> bool:
    """Whether the mixture may rely on renormalised weights where it will run.

    Raises ``ConfigError`` where no form of it runs there.
    """
    if compat != "gguf":
        return True
    if conversion.gguf_renormalises is None:
        raise ConfigError(
            f"llama.cpp and mlx-lm do not know {conversion.moe.model_type}, so --compat gguf cannot help",
            "leave --compat out and run it in transformers",
        )
    if not every_layer:
        raise ConfigError(
            f"--compat gguf needs every layer to be a mixture, not layers {layers}:"
            " llama.cpp's converter refuses dense ones beside them",
            "pass --layers all, or leave --compat out and run it in transformers",
        )
    return conversion.gguf_renormalises


def check_flat_routers(compat: str, router: str, needs_text: bool) -> None:
    """Raise ``ConfigError`` for a ``router`` that this form would not keep."""
    if needs_text and compat == "gguf":
        raise ConfigError(
            f"--compat gguf starts with flat routers, so --router {router} cannot be kept",
            "leave --compat out, or --router",
        )


def down_scale(settings: MoeSettings) -> float:
    """What last projections are multiplied by: unrenormalised, flat weights sum to K/E."""
    return 1.0 if settings.renormalise else settings.num_experts / settings.top_k


def untied(head: Head, settings: MoeSettings, held: Mapping[str, object]) -> dict[str, str]:
    """Tensors of ``head`` that are not ``held``, because they share others, and this form has."""
    if settings.renormalise:
        return {}
    return {n: own.removeprefix(head.prefix) for n, own in head.tied.items() if n not in held}


def export_notes(settings: MoeSettings, noise: float) -> Iterator[str]:
    """What the user of such a form should know."""
    if settings.renormalise:
        return
    yield (
        "--compat gguf: routers start near zero, whatever --router says, and the experts'"
        f" output is scaled by {settings.num_experts}/{settings.top_k}; training moves the"
        " routers, after which the weights no longer sum to 1"
    )
    if noise:
        yield (
            f"--compat gguf with --noise {noise:g}: until the routers are trained, rounding"
            " decides between experts that differ, and each engine rounds its own way"
        )


def is_as_exported(conversion: Conversion | None, record: Record) -> bool | None:
    """Whether routers are still as flat, and as many experts chosen, as when it was exported.

    None for a model that was not exported for such engines.
    """
    if conversion is None or conversion.gguf_renormalises is not False:
        return None
    same, top_k = None, None
    for step in record.steps:
        if step.command == "upcycle":
            same = True if step.options.get("compat") == "gguf" else None
            top_k = step.options.get("top_k")
        elif same is not None and step.command == "attach":
            kept = step.results.get("top_k", top_k) == top_k
            same = kept and step.options.get("router") == "zeros"
        elif same is not None and step.command == "warmup":
            same = False
    return same


def check_unscaled(name: str, conversion: Conversion, record: Record) -> None:
    """Raise ``ConfigError`` where the experts of ``name`` are scaled by their number."""
    if is_as_exported(conversion, record) is not None:
        raise ConfigError(
            f"{name} was made with --compat gguf: its experts are scaled by their number",
            "upcycle again without --compat, add experts, and export that",
        )
