"""What a mixture's class can do, held against the options that ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.errors import ConfigError
from moeify.families.conversion import Conversion
from moeify.families.registry import OWN
from moeify.routing.config import RouteBy

if TYPE_CHECKING:
    from moeify.upcycling.config import UpcycleConfig

NULL_KINDS = ("zero", "copy", "constant")
"""What null experts give: 0, a multiple of what they read, or a vector of their own."""
MAX_NULLS = 4096


def check_class(conversion: Conversion, known: tuple[Conversion, ...], options: UpcycleConfig) -> None:
    """Raise ``ConfigError`` for what the class of a mixture cannot do; hints name one that can of those ``known``."""
    model_type, rule, own = conversion.moe.model_type, conversion.moe.rule, any(c.remote_code for c in known)
    check_route_by(options.route_by, model_type, conversion.remote_code)
    _check_slices(options.slices, conversion, known)
    has_bias = conversion.remote_code or rule.selection_bias is not None
    check_router_bias(options.router_bias, model_type, has_bias, own)
    if options.null_experts and rule.nulls_key is None:
        raise ConfigError(
            f"--null-experts needs a class of moeify's own, and {model_type} is transformers': its weights would count"
            " null experts too",
            "pass --arch own" if own else "leave --null-experts out",
        )


def check_route_by(route_by: RouteBy | None, model_type: str, own_classes: bool) -> None:
    """Raise ``ConfigError`` where a family's class cannot route whole sequences."""
    if route_by == "sequence" and not own_classes:
        raise ConfigError(
            f"--route-by sequence needs a class of moeify's own, and {model_type} is transformers':"
            " its routers decide for each token",
            "leave --route-by out, or upcycle an encoder or with --arch own",
        )


def _check_slices(slices: int, conversion: Conversion, known: tuple[Conversion, ...]) -> None:
    """Raise ``ConfigError`` where the routers of a class do not keep the slices of a copy apart or together."""
    if slices == 1 or conversion.moe.rule.slices_key is not None:
        return
    able = [other for other in known if other.moe.rule.slices_key is not None]
    named = " or ".join(f"--arch {OWN if other.remote_code else other.moe.model_type}" for other in able)
    raise ConfigError(
        f"--slices needs routers that keep slices apart or copies together, and those of {conversion.moe.model_type}"
        " choose among all experts at once: rounding would mix slices of different copies (in bfloat16 an error of"
        " 0.43)",
        f"pass {named}" if able else "leave --slices out",
    )


def check_router_bias(router_bias: bool, model_type: str, has_bias: bool, own: bool) -> None:
    """Raise ``ConfigError`` where a family's class has no bias for choosing, and cannot be given one."""
    if router_bias and not has_bias:
        raise ConfigError(
            f"--router-bias needs a class of moeify's own, and {model_type} is transformers': its routers choose by"
            " their scores alone",
            "pass --arch own" if own else "leave --router-bias out",
        )


def check_nulls(nulls: int, kinds: tuple[str, ...], top_k: int, slices: int) -> None:
    """Raise ``ConfigError`` for null experts that no token could choose, or no class could have."""
    if not 0 <= nulls <= MAX_NULLS:
        raise ConfigError(f"there can be 0 to {MAX_NULLS} null experts, not {nulls}", "pass --null-experts 2")
    if wrong := [kind for kind in kinds if kind not in NULL_KINDS]:
        raise ConfigError(f"{wrong[0]!r} is no kind of null experts", f"--null-kinds takes {', '.join(NULL_KINDS)}")
    if not kinds or (nulls and len(kinds) > nulls):
        raise ConfigError(
            f"{len(kinds)} kinds for {nulls} null experts", f"name one of {', '.join(NULL_KINDS)} for each, or fewer"
        )
    if not nulls and kinds != NULL_KINDS[:1]:
        raise ConfigError("--null-kinds belongs to --null-experts", "pass --null-experts as well")
    if nulls and slices > 1:
        raise ConfigError(
            "--null-experts does not go with --slices: null experts would need rows in the router of every slice",
            "leave one of the two out",
        )
    if nulls and top_k < 2:
        raise ConfigError(
            f"null experts take the place of a token's second and further experts, and top-k is {top_k}",
            "pass --top-k 2 or more",
        )


def check_top_k(top_k: int, num_experts: int, slices: int = 1) -> None:
    """Raise ``ConfigError`` unless 1 <= top_k <= num_experts, as many in each of ``slices``."""
    if top_k % slices:
        raise ConfigError(
            f"top-k must be a multiple of the {slices} slices that experts lie in, not {top_k}",
            f"pass --top-k {slices}, one expert of each",
        )
    if not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"top-k must lie between 1 and the number of experts, {num_experts}, not {top_k}",
            f"pass --top-k {max(1, min(2, num_experts))}",
        )
