"""The papers behind what was done to a checkpoint, found by its recorded steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from moeify.tables import Citation

if TYPE_CHECKING:
    from moeify.provenance.record import Step

DOMAINS = Citation(
    used_for="routers regressed on domain labels",
    authors="Fanì and Ersoy",
    title="Training-Free Dynamic Upcycling of Expert Language Models",
    arxiv="2603.29765",
)
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def citations(steps: Iterable[Step]) -> list[Citation]:
    """The papers that ``steps`` say that they rest on, each once, in the order of use."""
    return list(dict.fromkeys(paper for step in steps for paper in _recorded(step)))


def _recorded(step: Step) -> Iterator[Citation]:
    listed = step.results.get("papers")
    for paper in listed if isinstance(listed, list) else []:
        texts = {k: str(v) for k, v in paper.items()} if isinstance(paper, dict) else {}
        if texts.keys() == Citation.__annotations__.keys() and _ARXIV.fullmatch(texts["arxiv"]):
            yield Citation(**texts)
