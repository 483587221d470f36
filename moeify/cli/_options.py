"""Arguments and options that are no field of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MixtureArgument = Annotated[str, typer.Argument(metavar="MOE", help="Mixture of experts: a folder or a Hub id.")]
OutputArgument = Annotated[
    Path | None, typer.Argument(help="Folder to write; named after source and options if left out.")
]
DryRunOption = Annotated[bool, typer.Option(help="Print the plan's totals and stop.")]
PushToOption = Annotated[str | None, typer.Option(help="Publish the result on the Hub as user/name.", metavar="ID")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def epilog(examples: tuple[str, ...]) -> str:
    """Examples for the end of a command's help."""
    return "\n\n".join(["Examples:", *(f"$ {example}" for example in examples)])
