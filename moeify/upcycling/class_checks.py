"""What a mixture's class can do, held against the options that ask for it."""

from __future__ import annotations

from moeify.errors import ConfigError
from moeify.routing.config import RouteBy


def check_route_by(route_by: RouteBy | None, model_type: str, own_classes: bool) -> None:
    """Raise ``ConfigError`` where a family's class cannot route whole sequences."""
    if route_by == "sequence" and not own_classes:
        raise ConfigError(
            f"--route-by sequence needs a class of moeify's own, and {model_type} is transformers':"
            " its routers decide for each token",
            "leave --route-by out, or upcycle an encoder or with --arch own",
        )


def check_slices(slices: int, model_type: str, can_slice: bool, own: bool) -> None:
    """Raise ``ConfigError`` where the routers of a family's class choose among all experts at once."""
    if slices > 1 and not can_slice:
        raise ConfigError(
            f"--slices needs a class of moeify's own, and {model_type} is transformers': its routers choose among all"
            " experts at once",
            "pass --arch own" if own else "leave --slices out",
        )


def check_router_bias(router_bias: bool, model_type: str, has_bias: bool, own: bool) -> None:
    """Raise ``ConfigError`` where a family's class has no bias for choosing, and cannot be given one."""
    if router_bias and not has_bias:
        raise ConfigError(
            f"--router-bias needs a class of moeify's own, and {model_type} is transformers': its routers choose by"
            " their scores alone",
            "pass --arch own" if own else "leave --router-bias out",
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
