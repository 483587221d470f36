"""The command line in this process: as a shell would see it, without the two seconds of imports."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import typer

from moeify.cli.app import app

_COMMAND = typer.main.get_command(app)


@dataclass(frozen=True)
class Done:
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything that was printed."""
        return self.out + self.err


def moeify(*arguments: object) -> Done:
    """Run ``moeify ARGUMENTS``."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            _COMMAND.main([str(a) for a in arguments], prog_name="moeify")
        except SystemExit as left:
            code = left.code
    assert isinstance(code, int | None)
    return Done(code or 0, out.getvalue(), err.getvalue())
