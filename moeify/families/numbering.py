"""Which experts are the slices of one copy of a dense network, and which the copies of one slice."""

from __future__ import annotations

from dataclasses import dataclass

SLICES_KEY, SHARED_KEY = "expert_slices", "shared_slices"
"""Under which config.json counts slices that have experts, and further ones that every token visits."""


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """How experts count copies of slices: number (r C + c) T + t is slice r T + t of copy c of C.

    Each of ``routers`` chooses among the C ``copies`` of its slice. Where ``tied`` slices of a copy share a router
    row, they lie side by side, and a token that visits one visits all T of them. In every family one of the two is 1.
    """

    copies: int
    routers: int = 1
    tied: int = 1

    @property
    def slices(self) -> int:
        """Slices with experts, which make one copy of the network together with those that all tokens share."""
        return self.routers * self.tied

    @property
    def num_experts(self) -> int:
        """All experts of a layer."""
        return self.copies * self.slices

    def expert(self, slice_number: int, copy: int) -> int:
        """The number of the expert that is one copy of one slice."""
        router, tied = divmod(slice_number, self.tied)
        return (router * self.copies + copy) * self.tied + tied

    def place(self, expert: int) -> tuple[int, int]:
        """The slice and the copy that an expert is."""
        rest, tied = divmod(expert, self.tied)
        router, copy = divmod(rest, self.copies)
        return router * self.tied + tied, copy

    def of_copy(self, copy: int) -> tuple[int, ...]:
        """The experts that are one copy of the network, slice by slice."""
        return tuple(self.expert(number, copy) for number in range(self.slices))

    def of_slice(self, slice_number: int) -> tuple[int, ...]:
        """The experts that are copies of one slice."""
        return tuple(self.expert(slice_number, copy) for copy in range(self.copies))

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Experts that come and go together, ascending: those with one router row."""
        return tuple(tuple(range(first, first + self.tied)) for first in range(0, self.num_experts, self.tied))
