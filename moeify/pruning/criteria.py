"""By which scores experts are chosen: one row each, a formula over what is known of an expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moeify.errors import ConfigError
from moeify.tables import Citation, Row, Table

TEXT_SUMS = ("frequency", "gate", "ean", "weighted_norm", "max_norm", "probability")
"""Sums over text, [E] in float64; X_j are the tokens routed to expert j, g_j the weights that
multiply its outputs f_j: |X_j|, sum g_j, sum ||f_j||, sum g_j ||f_j||, max ||f_j||, and over all
tokens the router's softmax, zero where the family renormalises."""
WEIGHT_SUMS = ("weights", "absolute", "squares")
"""Sums over an expert's gate, up and down weights w: how many they are, sum |w|, sum w^2."""
DRAWS = ("draw",)
"""One draw from U(0, 1), by seed, layer and expert."""


@dataclass(frozen=True, kw_only=True)
class Criterion(Row):
    """A score of experts; those that have least of it go first, or most where ``high_goes_first``.

    ``formula`` gives a layer's scores [E] from the quantities that ``needs`` names, by name: any of
    ``TEXT_SUMS``, ``WEIGHT_SUMS`` and ``DRAWS``, NumPy arrays [E] in float64.
    """

    needs: tuple[str, ...]
    formula: Callable[[Mapping[str, Any]], Any]
    high_goes_first: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether it takes a pass over text."""
        return any(name in TEXT_SUMS for name in self.needs)

    @property
    def reads_weights(self) -> bool:
        """Whether it takes a pass over the experts' weights."""
        return any(name in WEIGHT_SUMS for name in self.needs)

    @property
    def is_drawn(self) -> bool:
        """Whether it depends on the seed."""
        return any(name in DRAWS for name in self.needs)


def _evenness(weights: Any, absolute: Any, squares: Any, **_: Any) -> Any:
    """mean|w| / RMS(w): weights that are all alike in size have learnt least."""
    zeros = squares == 0  # such experts do nothing: 1 is more than any other has
    return (absolute + zeros) / (weights * squares + zeros) ** 0.5


_SEER = Citation(
    "Muzio et al.", "SEER-MoE: Sparse Expert Efficiency through Regularization for Mixture-of-Experts", "2404.05089"
)
CRITERIA: Table[Criterion] = Table(
    "criterion",
    Criterion(
        name="frequency", help="its tokens", needs=("frequency",), formula=lambda sums: sums["frequency"], paper=_SEER
    ),
    Criterion(name="gate", help="sum of its weights", needs=("gate",), formula=lambda sums: sums["gate"], paper=_SEER),
    Criterion(
        name="ean",
        help="sum of its outputs' norms",
        needs=("ean",),
        formula=lambda sums: sums["ean"],
        paper=Citation(
            "Jaiswal et al.",
            "Finding Fantastic Experts in MoEs: A Unified Study for Expert Dropping Strategies and Observations",
            "2504.05586",
        ),
    ),
    Criterion(
        name="reap",
        help="mean norm of its weighted outputs",
        needs=("weighted_norm", "frequency"),
        formula=lambda sums: sums["weighted_norm"] / sums["frequency"].clip(1),
        paper=Citation(
            "Lasby et al.", "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", "2510.13999"
        ),
    ),
    Criterion(
        name="aimer",
        help="how alike its weights are in size, of which the highest go",
        needs=WEIGHT_SUMS,
        formula=lambda sums: _evenness(**sums),
        high_goes_first=True,
        paper=Citation("Liu et al.", "AIMER: Calibration-Free Task-Agnostic MoE Pruning", "2603.18492"),
    ),
    Criterion(name="random", needs=DRAWS, formula=lambda sums: sums["draw"]),
    used_for="the score that chose the experts, {name}",
)


def register_criterion(row: Criterion) -> None:
    """Let ``prune`` and ``extract`` choose experts ``by`` a further score.

    Raises ``ConfigError`` for a name that is taken and for quantities that no pass collects.
    """
    known = (*TEXT_SUMS, *WEIGHT_SUMS, *DRAWS)
    if unknown := [name for name in row.needs if name not in known]:
        raise ConfigError(
            f"the criterion {row.name!r} needs {', '.join(unknown)}, which no pass collects",
            f"name some of: {', '.join(known)}",
        )
    CRITERIA.register(row)
