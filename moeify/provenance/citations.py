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
_Z_LOSS = Citation(
    used_for="the router z-loss",
    authors="Zoph et al.",
    title="ST-MoE: Designing Stable and Transferable Sparse Expert Models",
    arxiv="2202.08906",
)
_LOSS_FREE = Citation(
    used_for="balancing by offsets, and the measure MaxVio",
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
_COUNTS = ("the score that chose the experts", "2404.05089")
_SCORES = {"frequency": _COUNTS[1], "gate": _COUNTS[1], "ean": "2504.05586",
           "reap": "2510.13999", "aimer": "2603.18492"}  # fmt: skip
_BY_OPTION = {
    "balance": _BALANCE,
    "balance_coef": _BALANCE,
    "balance_loss": _BALANCE,
    "z_loss": _Z_LOSS,
    "z_coef": _Z_LOSS,
    "z_loss_coef": _Z_LOSS,
}
_BY_CHOICE = {"kmeans": _CENTROIDS, "clusters": _CENTROIDS, "loss-free": _LOSS_FREE}


def citations(steps: Iterable[Step]) -> list[Citation]:
    """The papers that ``steps`` rest on, each once, in the order of use."""
    found: list[Citation] = []
    for step in steps:
        if step.command == "upcycle":
            found.append(_UPCYCLING)
        elif step.command == "prune":
            found += _pruning(step.options.get("by"))
        elif step.command == "warmup":
            found += [_BY_OPTION[key] for key, used in step.options.items()
                      if key in _BY_OPTION and used]  # fmt: skip
            found += [_BY_CHOICE[value] for value in map(str, step.options.values())
                      if value in _BY_CHOICE]  # fmt: skip
            found.append(_LOSS_FREE)
    return list(dict.fromkeys(found))


def _pruning(by: Any) -> list[Citation]:
    if by not in _SCORES:
        return []
    return [Citation(used_for=f"{_COUNTS[0]}, {by}", authors="", title="", arxiv=_SCORES[by])]
