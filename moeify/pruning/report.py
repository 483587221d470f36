"""What pruning and extraction did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Mean loss in nats per token on text that calibration did not see.

    ``random`` are the losses after random pruning of the same size, one for each seed;
    ``better_than_chance`` says whether ``after`` is below every one of them by more than twice the
    standard error of the difference. ``change_error`` is the standard error of ``after - before``.
    All are over blocks of the text, and None where there is one block only.
    """

    tokens: int
    before: float
    after: float
    random: tuple[float, ...]
    random_mean: float
    random_std: float
    better_than_chance: bool
    before_error: float | None = None
    after_error: float | None = None
    change_error: float | None = None
    dropped: float | None = None
    """Loss after dropping the same experts without merging, where they were merged."""


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What pruning did. Experts are counted as in the source; bytes are those of weight files."""

    source: str
    output: str
    model_type: str
    by: str
    num_experts_before: int
    num_experts: int
    top_k: int
    kept: dict[int, tuple[int, ...]]
    dropped: dict[int, tuple[int, ...]]
    scores: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """The criterion's value for every expert of the source."""
    protected: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Super experts that stayed because of protection."""
    params_before: int
    params_after: int
    bytes_before: int
    bytes_written: int
    gate_inflation: dict[int, float] = field(default_factory=dict)
    """How much the kept experts' weights grow in a layer that does not renormalise them."""
    rescaled: bool = False
    merged: bool = False
    further_layers: tuple[int, ...] = ()
    """Layers for further tokens that stayed, with fewer experts."""
    held_out: HeldOutLoss | None = None
    tokens: int = 0
    """Tokens that the scores come from."""
    layer_by_layer: bool = False
    """Whether calibration held one layer's weights at a time."""
    warnings: tuple[str, ...] = ()
    bytes_carried: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify prune --json``."""
        return {"schema": "moeify.prune/1", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What extraction did; ``expert`` is None where several were averaged or a score chose."""

    source: str
    output: str
    model_type: str
    expert: int | None
    experts: tuple[int, ...]
    weights: tuple[float, ...]
    by: str | None = None
    """Score that chose the experts."""
    chosen: dict[int, int] = field(default_factory=dict)
    """The expert that it chose in each MoE layer."""
    moe_layers: tuple[int, ...]
    params: int
    bytes_written: int
    bytes_carried: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify extract --json``."""
        return {"schema": "moeify.extract/1", **asdict(self)}
