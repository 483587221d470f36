"""What code outside moeify adds to it by rows; importing this loads neither torch nor numpy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moeify.tables import Citation

if TYPE_CHECKING:
    from moeify.families.conversion import Conversion
    from moeify.families.registry import register_conversion, register_mixture
    from moeify.pruning.criteria import Criterion
    from moeify.warming.balances import Balance

__all__ = [
    "Balance", "Citation", "Conversion", "Criterion",
    "register_balance", "register_conversion", "register_criterion", "register_mixture",
]  # fmt: skip

_HOMES = {
    "Balance": "moeify.warming.balances",
    "Conversion": "moeify.families.conversion",
    "Criterion": "moeify.pruning.criteria",
    "register_conversion": "moeify.families.registry",
    "register_mixture": "moeify.families.registry",
}


def register_criterion(row: Criterion) -> None:
    """Let ``prune`` and ``extract`` choose experts ``by`` a further score.

    Raises ``ConfigError`` for a name that is taken and for quantities that no pass collects.
    """
    from moeify.pruning.criteria import CRITERIA, check_criterion

    check_criterion(row)
    CRITERIA.register(row)


def register_balance(row: Balance) -> None:
    """Let ``warmup`` keep the load even by a further loss.

    Raises ``ConfigError`` for a name that is taken.
    """
    from moeify.warming.balances import BALANCES

    BALANCES.register(row)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moeify.extend' has no attribute {name!r}")
