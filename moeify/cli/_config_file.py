"""``--config FILE``: options from a file, which those on the command line override."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from moeify.cli._option_table import flag_name
from moeify.cli._output import error
from moeify.errors import CheckpointError, ConfigError, MoeifyError
from moeify.options import as_fields

_HINT = "write options by their names, as in top_k: 2"
_NO_FILE = "name a YAML or JSON file"


def config_option(config: type) -> object:
    """The annotation of ``--config`` for a command whose options are the fields of ``config``."""

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            try:
                context.default_map = _options(config, path)
            except MoeifyError as failure:  # the command has not begun, so nobody else explains it
                error(failure.message, failure.hint)
                raise typer.Exit(1) from failure
        return path

    return Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML or JSON file with options by their names, as in top_k: 2; those given here win.",
            callback=read,
            is_eager=True,
        ),
    ]


def _options(config: type, path: Path) -> dict[str, Any]:
    """What the file at ``path`` says, in the form of the command line."""
    from moeify.checkpoint.mapping_file import read_mapping

    try:
        given = read_mapping(path)
    except CheckpointError as failure:
        raise ConfigError(f"--config {path}: {failure.message}", _HINT if path.exists() else _NO_FILE) from failure
    except OSError as failure:
        raise ConfigError(f"--config {path}: {failure.strerror}", _NO_FILE) from failure
    flags = {flag_name(field.name)[2:].replace("-", "_"): field.name for field in dataclasses.fields(config)}
    values = as_fields(config, given, str(path), flags)
    return {name: [*map(str, value)] if isinstance(value, tuple) else value for name, value in values.items()}
