"""What checkpoints reached on each task, beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of one checkpoint with its standard error, as the harness gives them; None where it gives none."""

    value: float
    stderr: float | None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.stderr is None else f" +- {self.stderr:.4f}")


@dataclass(frozen=True, kw_only=True)
class TaskMetric:
    """One metric of one task: the scores of all ``checkpoints``, in their order, over so many ``questions``."""

    task: str
    metric: str
    fewshot: int | None
    questions: int | None
    scores: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """The scores of ``checkpoints`` on all tasks. ``harness`` is the version of lm-evaluation-harness."""

    checkpoints: tuple[str, ...]
    metrics: tuple[TaskMetric, ...]
    harness: str
    limit: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify evaluate --json``."""
        return {"schema": "moeify.evaluate/1", **asdict(self)}


def side_by_side(found: Sequence[Mapping[str, Any]]) -> tuple[TaskMetric, ...]:
    """The metrics of the harness's results for each checkpoint, in the order of the first one's."""
    metrics = []
    for task, values in found[0]["results"].items():
        for key in values:
            name, comma, how = str(key).partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            metrics.append(
                TaskMetric(
                    task=task,
                    metric=name if how in ("", "none") else f"{name}, {how}",
                    fewshot=found[0].get("n-shot", {}).get(task),
                    questions=found[0].get("n-samples", {}).get(task, {}).get("effective"),
                    scores=tuple(_score(each["results"][task], name, how) for each in found),
                )
            )
    return tuple(metrics)


def _score(values: Mapping[str, Any], name: str, how: str) -> Score:
    stderr = values.get(f"{name}_stderr,{how}")
    known = isinstance(stderr, int | float) and math.isfinite(stderr)
    return Score(value=float(values[f"{name},{how}"]), stderr=float(stderr) if known and stderr is not None else None)
