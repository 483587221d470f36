"""The ``moeify`` command."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import typer

import moeify
from moeify.cli import add, attach, evaluate, extract, inspect, prune, push, replay, upcycle, verify, warmup
from moeify.cli._derived import derived
from moeify.cli._errors import guarded
from moeify.cli._extensions import load_extensions
from moeify.cli._options import epilog
from moeify.cli._versions import versions

app = typer.Typer(
    name="moeify",
    help="Turn dense transformers into mixtures of experts: exact, streaming, measured.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --version: those of Python and packages too, for a report of a bug.")
    ] = False,
) -> None:
    """Turn dense transformers into mixtures of experts: exact, streaming, measured."""
    if version:
        typer.echo(json.dumps(versions(), indent=2) if as_json else f"moeify {moeify.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    # PEFT imports it where it is installed, and it then advises about kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


load_extensions()  # before options are derived, which name what they add
for module in (upcycle, add, attach, warmup, inspect, prune, extract, verify, evaluate, replay, push):
    name = module.__name__.rsplit(".", 1)[-1]
    run = guarded(derived(module.command, module.FIRST))
    app.command(name, epilog=epilog(module.EXAMPLES))(run)
