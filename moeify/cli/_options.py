"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ForceOption",
    "JsonOption",
    "OutputArgument",
    "PushToOption",
    "QuietOption",
    "RevisionOption",
    "RouterOption",
    "SeedOption",
    "epilog",
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
