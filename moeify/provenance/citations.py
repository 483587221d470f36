"""The papers behind what was done to a checkpoint, found by its recorded steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moeify.provenance.record import Step

__all__ = ["Citation", "citations"]


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A paper and what it was used for."""

    used_for: str
    authors: str
    title: str
    arxiv: str


_UPCYCLING = Citation(
    used_for="experts as copies of the dense feed-forward layers",
    authors="Komatsuzaki et al.",
    title="Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
    arxiv="2212.05055",
)
_BALANCE = Citation(
    used_for="the balance loss",
    authors="Fedus et al.",
    title="Switch Transformers: Scaling to Trillion Parameter Models",
    arxiv="2101.03961",
)
_CV2 = Citation(
    used_for="the balance loss",
    authors="Shazeer et al.",
    title="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    arxiv="1701.06538",
)
_Z_LOSS = Citation(
    used_for="the router z-loss",
    authors="Zoph et al.",
    title="ST-MoE: Designing Stable and Transferable Sparse Expert Models",
    arxiv="2202.08906",
)
_LOSS_FREE = Citation(
    used_for="the measure MaxVio",
    authors="Wang et al.",
    title="Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
    arxiv="2408.15664",
)
_CENTROIDS = Citation(
    used_for="routers from clusters of their inputs",
    authors="",
    title="Cluster-aware Upcycling",
    arxiv="2604.13508",
)
_DOMAINS = Citation(
    used_for="routers regressed on domain labels", authors="", title="", arxiv="2603.29765"
)
_COUNTS = ("the score that chose the experts", "2404.05089")
_SCORES = {"frequency": _COUNTS[1], "gate": _COUNTS[1], "ean": "2504.05586",
           "reap": "2510.13999", "aimer": "2603.18492"}  # fmt: skip
_BALANCE_LOSSES = {"switch": _BALANCE, "cv2": _CV2}
_FITS = {"kmeans": _CENTROIDS, "domains": _DOMAINS}


def citations(steps: Iterable[Step]) -> list[Citation]:
    """The papers that ``steps`` rest on, each once, in the order of use."""
    found: list[Citation] = []
    for step in steps:
        if step.command == "upcycle":
            found.append(_UPCYCLING)
        elif step.command == "prune":
            found += _pruning(step.options.get("by"))
        elif step.command == "warmup":
            found += _warmup(step.options, step.results)
    return list(dict.fromkeys(found))


def _pruning(by: Any) -> list[Citation]:
    if by not in _SCORES:
        return []
    return [Citation(used_for=f"{_COUNTS[0]}, {by}", authors="", title="", arxiv=_SCORES[by])]


def _warmup(options: dict[str, Any], results: dict[str, Any]) -> list[Citation]:
    fit, balance = results.get("fit", options.get("fit")), options.get("balance")
    found = [_FITS[fit]] if fit in _FITS else []
    if options.get("steps"):
        found += [_BALANCE_LOSSES[balance]] if balance in _BALANCE_LOSSES else []
        found += [_Z_LOSS] if options.get("z_coef") else []
    return [*found, _LOSS_FREE]
