"""How routers are set before training: one row each, a function of what a router read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.provenance.citations import DOMAINS
from moeify.tables import Citation, Row, Table

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one router read of the text, ``inputs`` [T, H] of ``domains`` [T], and what is wanted of its rows.

    ``owners`` are the domains of experts that have labels.
    """

    inputs: Tensor
    domains: Tensor
    num_experts: int
    top_k: int
    owners: list[int] | None
    entropy: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Fit(Row):
    """``rows`` makes the rows [E, H] of a router; without it routers stay as they are."""

    rows: Callable[[Seen], Tensor] | None = None


def _kmeans(seen: Seen) -> Tensor:
    from moeify.routing.fit import kmeans_router

    return kmeans_router(seen.inputs, seen.num_experts, seen.top_k, entropy=seen.entropy, seed=seen.seed)


def _domains(seen: Seen) -> Tensor:
    from moeify.routing.fit import domain_router, label_router

    if seen.owners is not None:
        return label_router(seen.inputs, seen.domains, owners=seen.owners, seed=seen.seed)
    count = (seen.num_experts, seen.top_k)
    return domain_router(seen.inputs, seen.domains, *count, entropy=seen.entropy, seed=seen.seed)


FITS: Table[Fit] = Table(
    "fit",
    Fit(name="auto"),
    Fit(
        name="kmeans",
        help="clusters of what routers read",
        rows=_kmeans,
        paper=Citation(
            "Chu et al.",
            "Enhancing Mixture-of-Experts Specialization via Cluster-Aware Upcycling",
            "2604.13508",
            "routers from clusters of their inputs",
        ),
    ),
    Fit(name="domains", help="domains that the text names", rows=_domains, paper=DOMAINS),
    Fit(name="none"),
)
