"""Options of upcycle and attach."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moeify.errors import ConfigError
from moeify.routing.config import ROUTE_BY, ROUTER_INITS, RouteBy, RouterInit

__all__ = [
    "COMPATS",
    "DTYPES",
    "AttachConfig",
    "Compat",
    "Dtype",
    "UpcycleConfig",
    "VerifyConfig",
    "select_layers",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Compat = Literal["transformers", "gguf"]
COMPATS: tuple[Compat, ...] = get_args(Compat)
MAX_EXPERTS = 4096
MAX_NOISE = 1.0
_LAYER_ITEM = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class UpcycleConfig:
    """How a dense checkpoint becomes a mixture of experts.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    num_experts: int = 8
    """Experts in each MoE layer."""
    top_k: int = 2
    """Experts that each token visits."""
    layers: str = "all"
    """Layers to convert: all, odd, even, last-half, or numbers and ranges such as 0,2,4-7."""
    noise: float = 0.01
    """Standard deviation of the noise on each expert's weights, relative to the weights' own."""
    router: RouterInit = "calibrated"
    """How the routers start."""
    route_by: RouteBy = "token"
    """What a router decides for: each token, or a whole sequence by the mean of its tokens."""
    seed: int = 0
    """Seed of noise and routers."""
    dtype: Dtype = "auto"
    """Dtype of the output; auto keeps each tensor's own."""
    compat: Compat = "transformers"
    """gguf writes a form that llama.cpp and mlx-lm compute rightly too."""
    max_shard_size: str = "5GB"
    """Largest size of a weights file."""
    revision: str | None = None
    """Branch, tag or commit, where the source is a Hub id."""
    force: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_experts <= MAX_EXPERTS:
            raise ConfigError(
                f"a mixture needs 2 to {MAX_EXPERTS} experts, not {self.num_experts}",
                "pass --experts 8",
            )
        check_top_k(self.top_k, self.num_experts)
        if not (math.isfinite(self.noise) and 0 <= self.noise <= MAX_NOISE):
            raise ConfigError(
                f"noise must lie between 0 and {MAX_NOISE:g}, not {self.noise:g}",
                "it is relative to the weights' standard deviation: try --noise 0.01",
            )
        check_choice("router", self.router, ROUTER_INITS)
        check_choice("route-by", self.route_by, ROUTE_BY)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("compat", self.compat, COMPATS)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class AttachConfig:
    """How an existing mixture of experts gets fresh routers."""

    router: RouterInit = "calibrated"
    """How the routers start."""
    top_k: int | None = None
    """Experts that each token visits; None keeps the checkpoint's number."""
    route_by: RouteBy | None = None
    """What a router decides for, token or sequence; None keeps what the checkpoint has."""
    seed: int = 0
    """Seed of the routers."""
    revision: str | None = None
    """Branch, tag or commit, where the checkpoint is a Hub id."""
    force: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        check_choice("router", self.router, ROUTER_INITS)
        if self.route_by is not None:
            check_choice("route-by", self.route_by, ROUTE_BY)
        check_seed(self.seed)


def check_route_by(route_by: RouteBy | None, model_type: str, own_classes: bool) -> None:
    """Raise ``ConfigError`` where a family's class cannot route whole sequences."""
    if route_by == "sequence" and not own_classes:
        raise ConfigError(
            f"--route-by sequence needs a class of moeify's own, and {model_type} is transformers':"
            " its routers decide for each token",
            "leave --route-by out, or upcycle a BERT or GPT-2",
        )


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raise ``ConfigError`` unless 1 <= top_k <= num_experts."""
    if not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"top-k must lie between 1 and the number of experts, {num_experts}, not {top_k}",
            f"pass --top-k {max(1, min(2, num_experts))}",
        )


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless ``value`` is allowed."""
    if value not in allowed:
        raise ConfigError(f"{option} {value!r} is unknown", f"one of: {', '.join(allowed)}")


def check_seed(seed: int) -> None:
    """Raise ``ConfigError`` for a seed that the generator cannot take."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"the seed must lie between 0 and 2^63 - 1, not {seed}", "pass --seed 0")


def select_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that ``text`` names, ascending; raises ``ConfigError`` when out of range."""
    named = {
        "all": range(num_layers),
        "odd": range(1, num_layers, 2),
        "even": range(0, num_layers, 2),
        "last-half": range(num_layers // 2, num_layers),
    }
    if text in named:
        chosen = set(named[text])
    else:
        chosen = set()
        for item in text.split(","):
            match = _LAYER_ITEM.fullmatch(item.strip())
            if not match or len(item) > 16:
                raise ConfigError(
                    f"layers {text!r} is not understood",
                    f"one of {', '.join(named)}, or numbers and ranges such as 0,2,4-7",
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last >= num_layers:
                raise ConfigError(
                    f"layers {item.strip()} are out of range: the model has layers 0 to"
                    f" {num_layers - 1}",
                    "name layers that exist",
                )
            chosen |= set(range(first, last + 1))
    if not chosen:
        raise ConfigError(f"layers {text!r} selects none of {num_layers} layers", "try all")
    return tuple(sorted(chosen))


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """On what a mixture and its dense model are compared."""

    text: Path | None = None
    """Text file to read tokens from; None draws them evenly from the vocabulary."""
    batch: int = 2
    """Sequences, B."""
    length: int = 32
    """Tokens of each sequence, S."""
    dtype: Dtype = "auto"
    """Dtype to compute in; auto takes the dense checkpoint's own."""
    seed: int = 0
    """Seed of the drawn tokens."""

    def __post_init__(self) -> None:
        for option in ("batch", "length"):
            if not 1 <= getattr(self, option) <= 1 << 20:
                raise ConfigError(
                    f"{option} must be a positive number, not {getattr(self, option)}",
                    f"leave --{option} out",
                )
        check_choice("dtype", self.dtype, DTYPES)
        check_seed(self.seed)
