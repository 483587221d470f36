"""Options that were written down, in a file or a record, as the fields of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from moeify.errors import ConfigError

_SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def kinds(hint: object) -> list[Any]:
    """The types of a union but None; of any other annotation itself."""
    if get_origin(hint) in (Literal, Annotated, tuple):
        return [hint]
    return [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]


def as_fields(config: type, given: Mapping[Any, Any], where: str, other_names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of ``config`` that ``given`` names, with values of their types; null leaves a field out.

    ``where`` says in messages what names them, ``other_names`` which field is meant by a name that
    is none. Raises ``ConfigError`` for an unknown name, a field that is named twice and a value of
    another type.
    """
    hints = get_type_hints(config, include_extras=True)
    names = {**other_names, **{field.name: field.name for field in dataclasses.fields(config)}}
    found: dict[str, Any] = {}
    named_by: dict[str, Any] = {}
    for key, value in given.items():
        name = names.get(str(key).replace("-", "_"))
        if name is None:
            raise _unknown(str(key), names, where)
        if name in named_by:
            raise ConfigError(f"{where} names {name} twice, by {named_by[name]} and {key}", "leave one of them out")
        named_by[name] = key
        if value is not None:
            found[name] = _value(name, hints[name], value, where)
    return found


def _unknown(key: str, names: Mapping[str, str], where: str) -> ConfigError:
    near = get_close_matches(key.replace("-", "_"), names, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(dict.fromkeys(names.values()))}"
    return ConfigError(f"{where} names {key!r}, which is no option of this command", hint)


def _value(name: str, hint: object, value: Any, where: str) -> Any:
    wanted = kinds(hint)
    for kind in wanted:
        if get_origin(kind) is tuple:
            each = get_args(kind)[0]
            if isinstance(value, list | tuple) and all(_fits(part, each) for part in value):
                return tuple(value)
            if _fits(value, each) and len(wanted) == 1:
                return (value,)
        elif _fits(value, kind):
            return Path(value) if kind is Path else value
    said = ",".join(map(str, value)) if isinstance(value, list) else value
    as_text = f", as in {name}: '{said}'" if str in wanted and not isinstance(value, dict) else ""
    raise ConfigError(
        f"{where} gives {name} as {value!r}, which is not {_said(wanted)}", f"write it as {_said(wanted)}{as_text}"
    )


def _fits(value: Any, kind: Any) -> bool:
    kind = _plain(kind)
    if kind is float:
        return type(value) in (int, float)
    if kind in (str, Path):
        return isinstance(value, str)
    return type(value) is kind


def _plain(kind: Any) -> Any:
    """What a value is, of whose choices the config judges."""
    if get_origin(kind) is Literal:
        return str
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _said(wanted: Collection[Any]) -> str:
    parts = []
    for kind in wanted:
        if get_origin(kind) is tuple:
            parts.append(f"a list, each {_SAID[_plain(get_args(kind)[0])]}")
        else:
            parts.append(_SAID[_plain(kind)])
    return " or ".join(parts)
