"""What all faults share: small checkpoints, and a parent whose children need not import torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.disk import compile_disk
from tests.faults.processes import Nursery, nursery
from tests.faults.scenarios import Sources, make_sources


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("faults") / "sources", families=("gpt2", "qwen3"))


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(compile_disk(tmp_path_factory.mktemp("library"))) as started:
        yield started
