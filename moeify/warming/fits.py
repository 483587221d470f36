"""How routers are set before training: one row each."""

from __future__ import annotations

from moeify.provenance.citations import DOMAINS
from moeify.tables import Citation, Row, Table

FITS: Table[Row] = Table(
    "fit",
    Row(name="auto"),
    Row(
        name="kmeans",
        help="clusters of what routers read",
        paper=Citation(
            "Chu et al.",
            "Enhancing Mixture-of-Experts Specialization via Cluster-Aware Upcycling",
            "2604.13508",
            "routers from clusters of their inputs",
        ),
    ),
    Row(name="domains", help="domains that the text names", paper=DOMAINS),
    Row(name="none"),
)
