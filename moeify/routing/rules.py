"""Rules that send tokens elsewhere than routers do, by the names that options give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moeify.routing.loaded import Route
from moeify.routing.routes import HashedTokens, InTurn, LeastLoaded, random_experts
from moeify.tables import Row, Table


@dataclass(frozen=True, kw_only=True)
class RoutingRule(Row):
    """``start`` makes the route of one reading of a text from a seed.

    It has none where every token goes to the same expert, of which the best is looked for.
    """

    start: Callable[[int], Route] | None


ROUTING_RULES = Table[RoutingRule](
    "rule",
    RoutingRule(name="hash", help="by the token", start=HashedTokens),
    RoutingRule(name="random", help="drawn for every token", start=random_experts),
    RoutingRule(name="round-robin", help="one after the other", start=lambda seed: InTurn()),
    RoutingRule(
        name="least-loaded", help="the emptier half of what a router likes best", start=lambda seed: LeastLoaded()
    ),
    RoutingRule(name="static", help="one expert for all, the best of 16", start=None),
)
