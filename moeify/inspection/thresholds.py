"""Conditions on a report, such as ``dead>0,maxvio>2``, for use in scripts."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from moeify.errors import ConfigError
from moeify.inspection.report import InspectReport

_CONDITION = re.compile(r"([a-z_]+)\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}

METRICS = {
    "problems": (None, "problems found"),
    "dead": ("dataset", "dead experts, all layers together"),
    "maxvio": ("dataset", "MaxVio of the worst layer"),
    "entropy": ("dataset", "normalised router entropy of the most certain layer"),
    "cv": ("dataset", "coefficient of variation of the load in the worst layer"),
    "duplicates": ("weights", "experts that are exact copies of another one"),
    "nonfinite": ("weights", "NaN and infinite values in routers and experts"),
}
"""What conditions may name: the option that measures it, and what it is."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One condition on a report."""

    metric: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.limit:g}"

    def value(self, report: InspectReport) -> float:
        """What the report says."""
        if self.metric == "problems":
            return len(report.problems)
        layers = report.layers
        if self.metric == "dead":
            return sum(len(layer.routing["dead"]) for layer in layers)
        if self.metric == "duplicates":
            return sum(len(group) - 1 for layer in layers for group in layer.weights["duplicates"])
        if self.metric == "nonfinite":
            return float(sum(layer.weights["nonfinite"] for layer in layers))
        if self.metric == "entropy":
            return float(min((layer.routing["entropy"] for layer in layers), default=1.0))
        key = {"maxvio": "max_violation", "cv": "load_cv"}[self.metric]
        return float(max((layer.routing[key] for layer in layers), default=0.0))

    def met(self, report: InspectReport) -> bool:
        """Whether the condition holds."""
        return _OPERATORS[self.comparison](self.value(report), self.limit)


def parse_thresholds(text: str, *, weights: bool, dataset: bool) -> tuple[Threshold, ...]:
    """The conditions in ``text``; raises ``ConfigError`` for one that cannot be judged."""
    found = []
    for item in text.split(","):
        match = _CONDITION.fullmatch(item.strip())
        if match is None or match[1] not in METRICS:
            raise ConfigError(
                f"--fail-on {item.strip()!r} is not understood",
                f"compare one of {', '.join(METRICS)} with a number: dead>0,maxvio>2",
            )
        needed = METRICS[match[1]][0]
        if needed is not None and not {"weights": weights, "dataset": dataset}[needed]:
            raise ConfigError(f"--fail-on {match[1]} is measured on --{needed} only", f"add --{needed}")
        found.append(Threshold(metric=match[1], comparison=match[2], limit=float(match[3])))
    return tuple(found)
