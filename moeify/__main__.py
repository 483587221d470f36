"""``python -m moeify`` and the command ``moeify``."""

from moeify.cli._signals import leave_at_once

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    leave_at_once()  # before the imports, which are most of a short command's time
    from moeify.cli.app import app

    app(prog_name="moeify")  # python -m too: help and completion name the command


if __name__ == "__main__":
    main()
