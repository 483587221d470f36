"""A Hub of its own for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import Client
from .stand_in import HubStandIn, running_hub


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with running_hub() as stand_in:
        yield stand_in


@pytest.fixture
def client(hub: HubStandIn, tmp_path: Path) -> Client:
    """A user who is logged in at the stand-in, with a home folder of their own."""
    return Client(hub, tmp_path / "home")
