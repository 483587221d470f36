"""The loss if tokens were routed by other rules than the routers', beside theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeify.routing.data import Blocks
from moeify.routing.held_out import BlockLosses, Estimate, Reading
from moeify.routing.routes import one_expert
from moeify.routing.rules import ROUTING_RULES

_MOST_STATIC = 16
_STATIC_TOKENS = 1024
"""Tokens that single experts are compared on: all of them cost a pass together."""


@dataclass(frozen=True, kw_only=True)
class RuleLoss:
    """What one rule gave: ``losses``, and how far they are ``above`` the routers' on the same blocks.

    ``expert`` is the best one, of every slice, where all tokens visit the same.
    """

    losses: BlockLosses
    above: Estimate
    expert: int | None = None


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """What to read of ``blocks`` for the losses under ``rules``, in a mixture of so many ``copies``.

    Single experts are compared on 1,024 of the tokens, in blocks spread evenly over the text.
    """

    rules: Sequence[str]
    copies: int
    blocks: Blocks
    seed: int

    @cached_property
    def part(self) -> NDArray[np.intp]:
        """The blocks that single experts are compared on."""
        count = max(1, min(len(self.blocks), _STATIC_TOKENS // self.blocks.seq_len))
        return np.linspace(0, len(self.blocks) - 1, count).round().astype(np.intp)

    def readings(self) -> list[Reading]:
        """One for every rule, and one for every single expert."""
        found = []
        for name in self.rules:
            start = ROUTING_RULES[name].start
            if start is None:
                experts = range(min(self.copies, _MOST_STATIC))
                found += [Reading(route=one_expert(expert), rows=self.part) for expert in experts]
            else:
                found.append(Reading(route=start(self.seed)))
        return found

    def losses(self, learned: BlockLosses, read: Sequence[BlockLosses]) -> dict[str, RuleLoss]:
        """What each rule gave, of what ``readings`` gave and the routers' own ``learned``."""
        given, found = list(read), {}
        for name in self.rules:
            if ROUTING_RULES[name].start is not None:
                losses = given.pop(0)
                found[name] = RuleLoss(losses=losses, above=losses.above(learned))
                continue
            single = [given.pop(0) for _ in range(min(self.copies, _MOST_STATIC))]
            gains = [losses.above(learned.at(self.part)) for losses in single]
            best = min(range(len(gains)), key=lambda expert: gains[expert].value)
            found[name] = RuleLoss(losses=single[best], above=gains[best], expert=best)
        return found
