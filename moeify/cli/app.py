"""The ``moeify`` command."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

import moeify
from moeify.cli import add, attach, evaluate, extract, inspect, prune, push, replay, upcycle, verify, warmup
from moeify.cli._derived import derived
from moeify.cli._errors import guarded
from moeify.cli._extensions import load_extensions
from moeify.cli._options import epilog

app = typer.Typer(
    name="moeify",
    help="Turn dense transformers into mixtures of experts: exact, streaming, measured.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"moeify {moeify.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn dense transformers into mixtures of experts: exact, streaming, measured."""
    # PEFT imports it where it is installed, and it then advises about kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


load_extensions()  # before options are derived, which name what they add
for module in (upcycle, add, attach, warmup, inspect, prune, extract, verify, evaluate, replay, push):
    name = module.__name__.rsplit(".", 1)[-1]
    run = guarded(derived(module.command, module.FIRST))
    app.command(name, epilog=epilog(module.EXAMPLES))(run)
