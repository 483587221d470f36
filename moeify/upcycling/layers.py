"""The layers that an option names."""

from __future__ import annotations

import re

from moeify.errors import ConfigError

_LAYER_ITEM = re.compile(r"(\d+)(?:-(\d+))?")


def select_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that ``text`` names, ascending; raises ``ConfigError`` when out of range."""
    named = {
        "all": range(num_layers),
        "odd": range(1, num_layers, 2),
        "even": range(0, num_layers, 2),
        "last-half": range(num_layers // 2, num_layers),
    }
    if text in named:
        chosen = set(named[text])
    else:
        chosen = set()
        for item in text.split(","):
            match = _LAYER_ITEM.fullmatch(item.strip())
            if not match or len(item) > 16:
                raise ConfigError(
                    f"layers {text!r} is not understood",
                    f"one of {', '.join(named)}, or numbers and ranges such as 0,2,4-7",
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last >= num_layers:
                raise ConfigError(
                    f"layers {item.strip()} are out of range: the model has layers 0 to {num_layers - 1}",
                    "name layers that exist",
                )
            chosen |= set(range(first, last + 1))
    if not chosen:
        raise ConfigError(f"layers {text!r} selects none of {num_layers} layers", "try all")
    return tuple(sorted(chosen))
