"""What code outside moeify adds to it by rows; importing this loads neither torch nor numpy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moeify.tables import Citation

if TYPE_CHECKING:
    from moeify.families.conversion import Conversion
    from moeify.families.moe_layout import MoeLayout
    from moeify.pruning.criteria import Criterion
    from moeify.upcycling.recipes import Recipe
    from moeify.warming.balances import Balance

__all__ = [
    "Balance", "Citation", "Conversion", "Criterion", "MoeLayout", "Recipe",
    "register_balance", "register_conversion", "register_criterion", "register_mixture",
    "register_recipe",
]  # fmt: skip

_ROWS = {
    "Balance": "moeify.warming.balances",
    "Conversion": "moeify.families.conversion",
    "Criterion": "moeify.pruning.criteria",
    "MoeLayout": "moeify.families.moe_layout",
    "Recipe": "moeify.upcycling.recipes",
}


def register_criterion(row: Criterion) -> None:
    """Let ``prune`` and ``extract`` choose experts ``by`` a further score.

    Raises ``ConfigError`` for a name that is taken and for quantities that no pass collects.
    """
    from moeify.pruning.criteria import CRITERIA, check_criterion

    check_criterion(row)
    CRITERIA.register(row)


def register_mixture(layout: MoeLayout) -> None:
    """Let every command read mixtures of a further model type.

    Raises ``ConfigError`` for a model type that is there already.
    """
    from moeify.families import registry

    registry.register_mixture(layout)


def register_conversion(conversion: Conversion) -> None:
    """Let dense checkpoints of a further type become mixtures, or mixtures of a further type.

    The mixture's layout has to be there; the dense one comes along. Raises ``ConfigError``.
    """
    from moeify.families import registry

    registry.register_conversion(conversion)


def register_recipe(row: Recipe) -> None:
    """Let ``upcycle`` make experts in a further way.

    Raises ``ConfigError`` for a name that is taken.
    """
    from moeify.upcycling.recipes import RECIPES

    RECIPES.register(row)


def register_balance(row: Balance) -> None:
    """Let ``warmup`` keep the load even by a further loss.

    Raises ``ConfigError`` for a name that is taken.
    """
    from moeify.warming.balances import BALANCES

    BALANCES.register(row)


def __getattr__(name: str) -> Any:
    if name in _ROWS:
        return getattr(import_module(_ROWS[name]), name)
    raise AttributeError(f"module 'moeify.extend' has no attribute {name!r}")
