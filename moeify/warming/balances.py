"""What keeps the load even: one row each, a loss that is a function of the sums over a global batch, or a bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moeify.tables import Citation, Row, Table

if TYPE_CHECKING:
    from torch import Tensor

    from moeify.warming.losses import RouterSums


@dataclass(frozen=True, kw_only=True)
class Balance(Row):
    """How unevenly each layer by itself is loaded, averaged over the layers.

    ``formula`` makes a scalar of ``RouterSums``; ``through`` says by which of them its gradient
    reaches routers: weights of the chosen (``gates``) have none where a rule makes them constant.
    ``shifts_bias`` says that the bias for choosing moves in place of a loss.
    """

    formula: Callable[[RouterSums], Tensor]
    through: Literal["probabilities", "gates", "nothing"]
    shifts_bias: bool = False


def _switch(sums: RouterSums) -> Tensor:
    """E sum_i f_i P_i (arXiv 2101.03961 equations 4-6), f over all K choices.

    It is K when even, E when collapsed.
    """
    f = sums.counts / sums.counted.clamp(min=1)
    p = sums.probabilities / sums.tokens.clamp(min=1)
    return (sums.counts.shape[1] * (f * p).sum(-1)).mean()


def _cv2(sums: RouterSums) -> Tensor:
    """Squared coefficient of variation of the summed gates (arXiv 1701.06538 equations 6-7)."""
    return (sums.gates.var(-1, correction=0) / sums.gates.mean(-1).square()).mean()


def _nothing(sums: RouterSums) -> Tensor:
    return sums.z.new_zeros(())


def _kl(sums: RouterSums) -> Tensor:
    """Divergence of the mean gates from the uniform load."""
    shares = sums.gates / sums.gates.sum(-1, keepdim=True)
    # log 0 has no slope, and a load of 0 gets none.
    return shares.xlogy((shares * sums.counts.shape[1]).clamp(min=1e-9)).sum(-1).mean()


BALANCES: Table[Balance] = Table(
    "balance",
    Balance(
        name="switch",
        help="load times mean score",
        formula=_switch,
        through="probabilities",
        paper=Citation(
            "Fedus et al.",
            "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
            "2101.03961",
        ),
    ),
    Balance(
        name="cv2",
        help="variation of summed weights",
        formula=_cv2,
        through="gates",
        paper=Citation(
            "Shazeer et al.",
            "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
            "1701.06538",
        ),
    ),
    Balance(name="kl", help="their divergence from even", formula=_kl, through="gates"),
    Balance(
        name="bias",
        help="a bias that chooses experts, without a loss",
        formula=_nothing,
        through="nothing",
        shifts_bias=True,
        paper=Citation(
            "Wang et al.", "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", "2408.15664"
        ),
    ),
    Balance(name="none", formula=_nothing, through="nothing"),
    used_for="the balance loss",
)


def register_balance(row: Balance) -> None:
    """Let ``warmup`` keep the load even by a further loss.

    Raises ``ConfigError`` for a name that is taken.
    """
    BALANCES.register(row)
