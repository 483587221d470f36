"""The papers behind what was done to a checkpoint, found by its recorded steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from moeify.tables import Citation

if TYPE_CHECKING:
    from moeify.provenance.record import Step

__all__ = ["DOMAINS", "citations"]

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
DOMAINS = Citation(
    used_for="routers regressed on domain labels",
    authors="Fanì and Ersoy",
    title="Training-Free Dynamic Upcycling of Expert Language Models",
    arxiv="2603.29765",
)
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def citations(steps: Iterable[Step]) -> list[Citation]:
    """The papers that ``steps`` rest on, each once, in the order of use."""
    found: list[Citation] = []
    for step in steps:
        if step.command in ("upcycle", "add-experts"):
            found += _made(step)
        found += _recorded(step)
    return list(dict.fromkeys(found))


def _made(step: Step) -> list[Citation]:
    sources = step.results.get("sources") or []
    found = [_MIXING if sources else _UPCYCLING]
    if any(isinstance(source, dict) and source.get("adapter") for source in sources):
        found.append(_LORA)
    return [*found, DOMAINS] if step.options.get("router") == "data" else found


def _recorded(step: Step) -> Iterator[Citation]:
    """What a step says that it rests on: the papers of the rows of tables that it used."""
    listed = step.results.get("papers")
    for paper in listed if isinstance(listed, list) else []:
        texts = {k: str(v) for k, v in paper.items()} if isinstance(paper, dict) else {}
        if texts.keys() == Citation.__annotations__.keys() and _ARXIV.fullmatch(texts["arxiv"]):
            yield Citation(**texts)
