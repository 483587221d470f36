"""Data by model type: a module of a package each, imported when asked for, or registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar

from moeify.families.keys import joined_name, module_name

T = TypeVar("T")
_HYPHENATED = ("xlm_roberta", "deberta_v2")
"""Modules of types whose name has hyphens, which no module's has."""


class Catalogue(Mapping[str, T]):
    """What the modules of ``package`` call ``attribute``, by their names, and what was added.

    Only modules that lie in the package are ever imported: names come from config.json.
    """

    def __init__(self, package: ModuleType, attribute: str) -> None:
        self._package, self._attribute = package.__name__, attribute
        modules = (module.name for module in iter_modules(package.__path__))
        self._held: dict[str, Any] = {
            n.replace("_", "-") if n in _HYPHENATED else joined_name(n): None for n in modules
        }

    def __getitem__(self, name: str) -> T:
        if self._held[name] is None:
            module = import_module(f"{self._package}.{module_name(name)}")
            self._held[name] = getattr(module, self._attribute)
        found: T = self._held[name]
        return found

    def __setitem__(self, name: str, value: T) -> None:
        self._held[name] = value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
