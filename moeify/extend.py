"""What code outside moeify adds to it by rows; importing this loads neither torch nor numpy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeify.families.conversion import Conversion
    from moeify.families.moe_layout import MoeLayout
    from moeify.families.registry import register_conversion, register_mixture
    from moeify.pruning.criteria import Criterion, register_criterion
    from moeify.tables import Citation
    from moeify.upcycling.recipes import Recipe, register_recipe
    from moeify.warming.balances import Balance, register_balance

__all__ = [
    "Balance",
    "Citation",
    "Conversion",
    "Criterion",
    "MoeLayout",
    "Recipe",
    "register_balance",
    "register_conversion",
    "register_criterion",
    "register_mixture",
    "register_recipe",
]

_HOMES = {
    "Balance": "warming.balances",
    "Citation": "tables",
    "Conversion": "families.conversion",
    "Criterion": "pruning.criteria",
    "MoeLayout": "families.moe_layout",
    "Recipe": "upcycling.recipes",
    "register_balance": "warming.balances",
    "register_conversion": "families.registry",
    "register_criterion": "pruning.criteria",
    "register_mixture": "families.registry",
    "register_recipe": "upcycling.recipes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"moeify.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'moeify.extend' has no attribute {name!r}")
