"""Names of the ways to set an untrained router."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["ROUTER_INITS", "RouterInit"]

RouterInit = Literal["calibrated", "normal", "zeros"]
ROUTER_INITS: tuple[RouterInit, ...] = get_args(RouterInit)
