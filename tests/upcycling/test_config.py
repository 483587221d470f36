"""Layer selections, held against a set computed by hand."""

from __future__ import annotations

import pytest

from moeify.errors import ConfigError
from moeify.upcycling.layers import select_layers


@pytest.mark.parametrize(
    ("text", "num_layers", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("odd", 5, (1, 3)),
        ("even", 5, (0, 2, 4)),
        ("last-half", 5, (2, 3, 4)),
        ("4", 5, (4,)),
        ("0,2,4-7", 8, (0, 2, 4, 5, 6, 7)),
        ("3-4, 3, 0", 5, (0, 3, 4)),
    ],
)
def test_selections(text: str, num_layers: int, expected: tuple[int, ...]) -> None:
    assert select_layers(text, num_layers) == expected


@pytest.mark.parametrize("text", ["odd", "5", "4-5", "-1", "1,,2", "a", "99999999999999999999"])
def test_refusals(text: str) -> None:
    with pytest.raises(ConfigError):
        select_layers(text, 1)
