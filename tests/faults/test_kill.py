"""The short form of ``make faults``: commands killed at a dozen moments, and those that matter."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killing import Striker, check_output, tree
from tests.faults.processes import Place, Running, nursery
from tests.faults.scenarios import Scenario, Sources, make_sources, scenarios


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("faults") / "sources", families=("gpt2", "qwen3"))


@pytest.fixture(scope="module")
def striker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Striker]:
    with nursery() as parent:
        yield Striker(tmp_path_factory.mktemp("strikes"), parent)


def find(sources: Sources, name: str) -> Scenario:
    return next(scenario for scenario in scenarios(sources) if scenario.name == name)


@pytest.mark.parametrize(
    ("name", "moments"),
    [("upcycle qwen3", 2), ("upcycle gpt2 --force", 2), ("attach gpt2", 1), ("extract qwen3", 1),
     ("prune qwen3", 2), ("warmup gpt2", 3), ("push qwen3", 1)],
)  # fmt: skip
def test_a_kill_at_any_moment_loses_nothing(
    sources: Sources, striker: Striker, name: str, moments: int
) -> None:
    for number in range(moments):
        striker.strike(find(sources, name), random.Random(f"{name}/{number}"))
