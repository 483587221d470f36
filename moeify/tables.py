"""Tables of methods, to which code outside moeify may add rows, and what options may name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from moeify.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Citation:
    """A paper, its number on arXiv and what it was used for, as its row's table says by default."""

    authors: str
    title: str
    arxiv: str
    used_for: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method: what options call it, a few words for the help, and the paper for the card."""

    name: str
    help: str = ""
    paper: Citation | None = None


R = TypeVar("R", bound=Row)


class Table(Mapping[str, R], Generic[R]):
    """Rows by name, in the order in which they came.

    ``what`` is what a row is called, ``used_for`` what the paper of ``{name}`` was used for.
    """

    def __init__(self, what: str, *rows: R, used_for: str = "") -> None:
        self.what, self.used_for = what, used_for
        self._rows: dict[str, R] = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> R:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __hash__(self) -> int:
        return id(self)  # a type that names it has to be hashable

    def cited(self, name: str) -> list[Citation]:
        """The paper that the row ``name`` rests on, where it names one."""
        paper = self[name].paper
        used_for = self.used_for.format(name=name)
        return [] if paper is None else [replace(paper, used_for=paper.used_for or used_for)]

    def register(self, row: R) -> None:
        """Add ``row``; raises ``ConfigError`` for a name that is taken or no word for an option."""
        if not _NAME.fullmatch(row.name):
            raise ConfigError(
                f"{self.what} {row.name!r} has no name that an option can take",
                "name it with small letters, digits, - and _",
            )
        if self._rows.setdefault(row.name, row) != row:
            raise ConfigError(f"there is a {self.what} {row.name!r} already", "name it otherwise")


def choices(hint: Any) -> Collection[str]:
    """What the type of a field allows to name: a ``Literal``'s values or a table's rows."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) is Annotated:
        return next((m for m in hint.__metadata__ if isinstance(m, Table)), ())
    inner = (choices(part) for part in get_args(hint))
    return next((found for found in inner if found), ())


def check_choices(config: Any) -> None:
    """Raise ``ConfigError`` where a field of ``config`` names what its type does not allow."""
    hints = get_type_hints(type(config), include_extras=True)
    for option in (field.name for field in fields(config)):
        value, allowed = getattr(config, option), choices(hints[option])
        absent = value is None and NoneType in get_args(hints[option])
        if allowed and not absent and value not in tuple(allowed):
            name = option.replace("_", "-")
            raise ConfigError(f"{name} {value!r} is unknown", f"one of: {', '.join(allowed)}")
