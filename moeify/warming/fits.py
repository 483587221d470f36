"""How routers are set before training: one row each."""

from __future__ import annotations

from moeify.provenance.citations import DOMAINS
from moeify.tables import Citation, Row, Table

__all__ = ["FITS"]

FITS: Table[Row] = Table(
    "fit",
    Row(name="auto"),
    Row(
        name="kmeans",
        help="clusters of what routers read",
        paper=Citation(
            used_for="routers from clusters of their inputs",
            authors="Chu et al.",
            title="Enhancing Mixture-of-Experts Specialization via Cluster-Aware Upcycling",
            arxiv="2604.13508",
        ),
    ),
    Row(name="domains", help="domains that the text names", paper=DOMAINS),
    Row(name="none"),
)
