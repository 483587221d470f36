"""Commands whose options are the fields of frozen configs, which declare them once."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from itertools import chain
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from moeify.cli._config_file import config_option
from moeify.cli._field_docs import field_docs
from moeify.cli._option_table import METAVARS, PANEL_OF, PANELS, SHORT, flag_name
from moeify.cli._options import JsonOption, QuietOption
from moeify.cli._output import Output
from moeify.errors import ConfigError
from moeify.options import kinds
from moeify.tables import Table, choices

Parameter = inspect.Parameter


def derived(command: Callable[..., None], first: Sequence[str]) -> Callable[..., None]:
    """``command`` as typer wants it.

    An option for each field takes the place of its parameter ``config``, --json and --quiet that
    of ``out``. The options named ``first`` come first in the help, the others in panels.
    """
    signature = inspect.signature(command, eval_str=True)
    config = config_of(command)
    hints = get_type_hints(config, include_extras=True)
    docs = field_docs(config)
    fields = dataclasses.fields(config)

    def run(**given: Any) -> None:
        first = os.environ.get("RANK", "0") == "0"  # of several processes only one reports
        as_json, quiet = given.pop("as_json"), given.pop("quiet")
        given.pop("config_file")  # read while the command line was, see config_option
        out = Output(as_json=as_json and first, quiet=quiet or not first)
        values = {field.name: given.pop(field.name) for field in fields}
        options = {name: _parsed(name, hints[name], value) for name, value in values.items() if value is not None}
        with out.progress():
            command(out=out, config=config(**options), **given)

    own = [p for p in signature.parameters.values() if p.name not in ("config", "out")]
    made = [_option(field, hints[field.name], docs.get(field.name, "")) for field in fields]
    from_file = _keyword("config_file", config_option(config), None)
    report = [_keyword("as_json", JsonOption, False), _keyword("quiet", QuietOption, False)]
    every = [*own, *made, from_file, *report]
    run.__doc__ = command.__doc__
    run.__annotations__ = {}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=Parameter.KEYWORD_ONLY) for p in _ordered(every, first)]
    )
    return run


def config_of(command: Callable[..., None]) -> type:
    """The config whose fields are the options of ``command``."""
    config: type = inspect.signature(command, eval_str=True).parameters["config"].annotation
    return config


def _keyword(name: str, annotation: object, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _ordered(parameters: list[Parameter], first: Sequence[str]) -> list[Parameter]:
    """Arguments, the options named ``first``, then the others panel by panel."""
    found: dict[str, list[Parameter]] = {panel: [] for panel in ("", *PANELS)}
    for parameter in parameters:
        info = parameter.annotation.__metadata__[0]
        if isinstance(info, typer.models.ArgumentInfo):
            found[""].append(parameter)
        elif parameter.name not in first:
            panel = PANEL_OF.get(parameter.name, PANELS[0])
            found[panel].append(_placed(parameter, panel))
    named = {parameter.name: parameter for parameter in parameters}
    arguments = found.pop("")
    return [*arguments, *(named[name] for name in first), *chain(*found.values())]


def _placed(parameter: Parameter, panel: str) -> Parameter:
    """``parameter`` in a panel of the help; commands share the original."""
    taken, info = get_args(parameter.annotation)
    info = copy(info)
    info.rich_help_panel = panel
    return parameter.replace(annotation=Annotated[taken, info])


def _option(field: dataclasses.Field[Any], hint: object, doc: str) -> Parameter:
    """A field as an option: what it takes follows from its type."""
    wanted = kinds(hint)
    flag, default = flag_name(field.name), field.default
    named = choices(hint)
    taken: Any
    if bool in wanted:
        negative = default is not False
        flag, taken = f"{flag}/--no-{flag[2:]}" if negative else flag, bool | None
    elif any(get_origin(kind) is tuple for kind in wanted):
        taken, doc = list[str] | None, f"{doc} Repeat it or use commas."
        default = None if default in ((), None) else default
    else:
        taken = (str if named else wanted[0]) | None
        if isinstance(named, Table):
            known = (f"{row.name} ({row.help})" for row in named.values() if row.help)
            doc = f"{doc} Known are {', '.join(known)}."
    info = typer.Option(
        *(flag, *SHORT.get(field.name, ())),
        help=re.sub(r"``(\w+)``", lambda found: flag_name(found[1]), doc),
        metavar="|".join(named) or METAVARS.get(field.name),
        autocompletion=_completing(named) if named else None,
    )
    required = default is dataclasses.MISSING
    return _keyword(field.name, Annotated[taken, info], Parameter.empty if required else default)


def _completing(named: Collection[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in named if name.startswith(incomplete)]


def _parsed(name: str, hint: object, given: Any) -> Any:
    """The value of a field, as its config wants it."""
    for kind in kinds(hint):
        if get_origin(kind) is tuple and isinstance(given, list):
            return _listed(name, given, get_args(kind)[0])
    return given


def _listed(option: str, given: Iterable[str], kind: type) -> tuple[Any, ...]:
    """What was named one by one or with commas between; a folder's name may hold commas."""
    parts: list[str] = []
    for text in given:
        whole = kind is str and os.path.isdir(text)
        parts += [text] if whole else [p.strip() for p in text.split(",") if p.strip()]
    if kind is str:
        return tuple(parts)
    try:
        numbers = tuple(kind(part) for part in parts)
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers
    except ValueError:
        flag = flag_name(option)
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(
            f"{flag} {','.join(parts)!r} is no list of {what}",
            f"write it as {flag} {'0,3' if kind is int else '0.5,0.5'}",
        ) from None
