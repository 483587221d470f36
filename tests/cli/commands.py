"""The commands as they are registered, and the options that each of them has."""

from __future__ import annotations

from typing import Any

import typer.main

from moeify.cli import add, attach, evaluate, extract, inspect, prune, push, replay, upcycle, verify, warmup
from moeify.cli._derived import config_of
from moeify.cli.app import app

MODULES = (upcycle, add, attach, warmup, inspect, prune, extract, verify, evaluate, replay, push)
CONFIGS = {m.__name__.rsplit(".", 1)[-1]: config_of(m.command) for m in MODULES}
ROOT: Any = typer.main.get_command(app)
FLAGS = {
    name: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    for name, command in ROOT.commands.items()
}
