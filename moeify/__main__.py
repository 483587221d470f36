"""``python -m moeify`` and the command ``moeify``."""

from moeify.cli._signals import leave_at_once


def main() -> None:
    """Run the command line."""
    leave_at_once()  # before the imports, which are most of a short command's time
    from moeify.cli.app import app

    # The name for python -m too: help and completion show it.
    app(prog_name="moeify")


if __name__ == "__main__":
    main()
