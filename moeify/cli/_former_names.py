"""Options under their first names: read, with a word about today's, until the first release."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_OPTIONS = {
    "upcycle": {"--weights": "--shares"},
    "warmup": {"--batch-size": "--batch", "--dense": "--reference"},
    "inspect": {"--dense": "--reference"},
    "prune": {"--batch-size": "--batch", "--experts": "--drop"},
    "extract": {"--experts": "--expert", "--weights": "--shares"},
    "verify": {"--length": "--seq-len"},
}
_JOINING = "--add-experts"


def todays_names(arguments: Sequence[str]) -> list[str]:
    """``arguments`` of the command line with former names replaced; says so on stderr."""
    command, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    names = _OPTIONS.get(command, {})
    if command == "upcycle" and any(item.partition("=")[0] == _JOINING for item in rest):
        command, names = "add", {_JOINING: "--expert", **names}
    read = []
    for item in rest:
        flag, sign, value = item.partition("=")
        if flag in names:
            former = f"{flag} of moeify {arguments[0]}"
            sys.stderr.write(f"warning: {former} is now {names[flag]} of moeify {command}\n")
        read.append(names.get(flag, flag) + sign + value)
    return [command, *read] if arguments else []
