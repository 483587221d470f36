"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from moeify.errors import ConfigError

__all__ = [
    "ForceOption",
    "JsonOption",
    "OutputArgument",
    "PushToOption",
    "QuietOption",
    "RevisionOption",
    "RouterOption",
    "SeedOption",
    "comma_list",
    "epilog",
    "number_list",
    "source_list",
    "whole_numbers",
]

OutputArgument = Annotated[
    Path | None, typer.Argument(help="Folder to write; named after source and options if left out.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub id.", metavar="REV")
]
PushToOption = Annotated[
    str | None, typer.Option(help="Publish the result on the Hub as user/name.", metavar="ID")
]
RouterOption = Annotated[
    str, typer.Option(help="How the routers start.", metavar="calibrated|normal|zeros")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


def epilog(*examples: str) -> str:
    """Examples for the end of a command's help."""
    return "\n\n".join(["Examples:", *(f"$ {example}" for example in examples)])


def comma_list(text: str | None) -> list[str]:
    """The parts of ``a,b,c``."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def number_list(option: str, text: str | None) -> tuple[float, ...]:
    """The numbers of ``0.5,0.5``; raises ``ConfigError`` for anything else."""
    try:
        numbers = tuple(float(part) for part in comma_list(text))
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers
    except ValueError:
        raise ConfigError(
            f"--{option} {text!r} is no list of numbers", f"write it as --{option} 0.5,0.5"
        ) from None


def whole_numbers(option: str, text: str | None) -> tuple[int, ...]:
    """The numbers of ``0,3``; raises ``ConfigError`` for anything else."""
    numbers = number_list(option, text)
    if any(number != int(number) for number in numbers):
        raise ConfigError(f"--{option} {text!r} is no list of whole numbers", f"--{option} 0,3")
    return tuple(int(number) for number in numbers)


def source_list(given: Iterable[str] | None) -> tuple[str, ...]:
    """Checkpoints named one by one or with commas between them."""
    found: list[str] = []
    for text in given or ():
        found += [text] if Path(text).is_dir() else comma_list(text)
    return tuple(found)
