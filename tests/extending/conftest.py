"""Model types that a test registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeify.families import registry
from moeify.families.catalogue import Catalogue
from tests.extending.documented import example


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    for name in ("DENSE_LAYOUTS", "MOE_LAYOUTS", "CONVERSIONS"):
        catalogue: Catalogue[Any] = getattr(registry, name)
        monkeypatch.setattr(catalogue, "_held", dict(catalogue._held))


@pytest.fixture
def seed_oss(clean: None, tmp_path: Path) -> None:
    """The file of the page, run as an import runs it."""
    file = tmp_path / "seed_oss_to_granitemoe.py"
    file.write_text(example("A model type"))
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "seed_oss_to_granitemoe"})
