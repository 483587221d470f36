"""What a model raises becomes one sentence; what is no model's fault stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moeify.errors import CheckpointError, RoutingError
from moeify.routing.running import run_model


class _Model(torch.nn.Module):
    def __init__(self, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Any) -> Any:
        return self.run(x)


def test_a_model_that_runs() -> None:
    assert run_model(_Model(lambda x: x + 1), x=2) == 3


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda x: torch.zeros(2).topk(3), "selected index k out of range"),
        (lambda x: torch.nn.functional.dropout(torch.zeros(2), p=float("nan")), "dropout prob"),
        (lambda x: {}["key"], "'key'"),
        (lambda x: 1 // 0, "division"),
        (lambda x: None.size, "no attribute 'size'"),  # type: ignore[attr-defined]
    ],
)
def test_a_model_that_does_not(run: Callable[[Any], Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"_Model cannot run: .*{reason}") as caught:
        run_model(_Model(run), x=1)
    assert caught.value.__cause__ is not None and caught.value.hint


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def run(_: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    "error", [RoutingError("no router"), KeyboardInterrupt(), OSError(28, "No space"), MemoryError()]
)
def test_what_is_not_the_model_s(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run_model(_Model(_raise(error)), x=1)
    assert caught.value is error


def test_memory_that_is_not_enough() -> None:
    with pytest.raises(MemoryError, match="allocate"):
        run_model(_Model(lambda x: torch.empty(1 << 60, dtype=torch.int8)), x=1)
    with pytest.raises(MemoryError):
        run_model(_Model(_raise(torch.OutOfMemoryError("CUDA out of memory"))), x=1)
