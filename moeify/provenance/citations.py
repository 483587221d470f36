"""The papers behind what was done to a checkpoint, found by its recorded steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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
_MIXING = Citation(
    used_for="experts from models that were trained apart",
    authors="Sukhbaatar et al.",
    title="Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM",
    arxiv="2403.07816",
)
_LORA = Citation(
    used_for="experts from low-rank adapters",
    authors="Hu et al.",
    title="LoRA: Low-Rank Adaptation of Large Language Models",
    arxiv="2106.09685",
)
_BALANCE = Citation(
    used_for="the balance loss",
    authors="Fedus et al.",
    title="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient"
    " Sparsity",
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
    authors="Chu et al.",
    title="Enhancing Mixture-of-Experts Specialization via Cluster-Aware Upcycling",
    arxiv="2604.13508",
)
_DOMAINS = Citation(
    used_for="routers regressed on domain labels",
    authors="Fanì and Ersoy",
    title="Training-Free Dynamic Upcycling of Expert Language Models",
    arxiv="2603.29765",
)
_COUNTS = Citation(
    used_for="the score that chose the experts",
    authors="Muzio et al.",
    title="SEER-MoE: Sparse Expert Efficiency through Regularization for Mixture-of-Experts",
    arxiv="2404.05089",
)
_SCORES = {
    "frequency": _COUNTS,
    "gate": _COUNTS,
    "ean": Citation(
        used_for="the score that chose the experts",
        authors="Jaiswal et al.",
        title="Finding Fantastic Experts in MoEs: A Unified Study for Expert Dropping Strategies"
        " and Observations",
        arxiv="2504.05586",
    ),
    "reap": Citation(
        used_for="the score that chose the experts",
        authors="Lasby et al.",
        title="REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression",
        arxiv="2510.13999",
    ),
    "aimer": Citation(
        used_for="the score that chose the experts",
        authors="Liu et al.",
        title="AIMER: Calibration-Free Task-Agnostic MoE Pruning",
        arxiv="2603.18492",
    ),
}
_MERGING = Citation(
    used_for="experts merged into their nearest",
    authors="Li et al.",
    title="Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy",
    arxiv="2310.01334",
)
_BALANCE_LOSSES = {"switch": _BALANCE, "cv2": _CV2}
_FITS = {"kmeans": _CENTROIDS, "domains": _DOMAINS}


def citations(steps: Iterable[Step]) -> list[Citation]:
    """The papers that ``steps`` rest on, each once, in the order of use."""
    found: list[Citation] = []
    for step in steps:
        if step.command in ("upcycle", "add-experts"):
            found += _made(step)
        elif step.command == "prune":
            found += _pruning(step.options)
        elif step.command == "warmup":
            found += _warmup(step.options, step.results)
    return list(dict.fromkeys(found))


def _made(step: Step) -> list[Citation]:
    sources = step.results.get("sources") or []
    found = [_MIXING if sources else _UPCYCLING]
    if any(isinstance(source, dict) and source.get("adapter") for source in sources):
        found.append(_LORA)
    return [*found, _DOMAINS] if step.options.get("router") == "data" else found


def _pruning(options: dict[str, Any]) -> list[Citation]:
    by, found = options.get("by"), []
    if by in _SCORES:
        score = _SCORES[by]
        found.append(replace(score, used_for=f"{score.used_for}, {by}"))
    return [*found, _MERGING] if options.get("merge") else found


def _warmup(options: dict[str, Any], results: dict[str, Any]) -> list[Citation]:
    fit, balance = results.get("fit", options.get("fit")), options.get("balance")
    found = [_FITS[fit]] if fit in _FITS else []
    if options.get("steps"):
        found += [_BALANCE_LOSSES[balance]] if balance in _BALANCE_LOSSES else []
        found += [_Z_LOSS] if options.get("z_coef") else []
    return [*found, _LOSS_FREE]
