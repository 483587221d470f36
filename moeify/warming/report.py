"""What a warm-up did, measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from moeify.routing.statistics import RoutingStatistics
from moeify.warming.headroom import Headroom


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """One MoE layer on the held-out text, before and after. ``load`` [E] sums to 1."""

    layer: int
    max_violation_before: float
    max_violation_after: float
    entropy_before: float
    entropy_after: float
    dead_before: list[int]
    dead_after: list[int]
    load_before: list[float]
    load_after: list[float]
    nmi_after: float | None = None
    own_expert_fraction: dict[str, float] = field(default_factory=dict)
    enrichment: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DomainLoss:
    """The loss on one domain of the held-out text."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class WarmupReport:
    """What ``warmup`` did. Losses are per token (or label) of the held-out slice, in nats.

    ``loss`` names the task; ``distill`` losses are relative squared distances instead. ``fit``
    says how routers were set, ``none`` where they were left alone; ``data_fingerprint`` is the
    SHA-256 of all tokens that were read, held-out ones included. ``entropy`` is the router's
    own, ``max_violation`` MaxVio, both averaged over the layers. ``curve`` has the training loss
    of every step and its parts.
    """

    source: str
    output: str
    model_type: str
    num_experts: int
    top_k: int
    fit: str
    train: str
    loss: str
    steps: int
    tokens: int
    data_fingerprint: str
    fit_tokens: int
    eval_tokens: int
    reservoir_bytes: int
    headroom: Headroom
    eval_loss_before: float
    eval_loss_fitted: float
    eval_loss_after: float
    eval_loss_random: float
    eval_loss_dense: float | None
    domain_losses: dict[str, DomainLoss]
    max_violation_before: float
    max_violation_after: float
    entropy_before: float
    entropy_after: float
    dead_before: int
    dead_after: int
    layers: list[LayerChange]
    curve: list[dict[str, float]]
    bytes_written: int
    files_linked: int
    files_copied: int
    collect_seconds: float
    fit_seconds: float
    train_seconds: float
    seconds: float
    notes: list[str]
    failed: str | None = None
    bytes_carried: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify warmup --json``."""
        return {"schema": "moeify.warmup/1", **asdict(self)}

    def results(self) -> dict[str, Any]:
        """What moeify.json and the model card keep."""
        keys = (
            "fit",
            "steps",
            "tokens",
            "data_fingerprint",
            "fit_tokens",
            "eval_tokens",
            "loss",
            "eval_loss_before",
            "eval_loss_after",
            "eval_loss_random",
            "eval_loss_dense",
            "max_violation_before",
            "max_violation_after",
            "entropy_before",
            "entropy_after",
            "dead_before",
            "dead_after",
        )
        found = {key: getattr(self, key) for key in keys}
        return {
            **found,
            "experts_identical": self.headroom.experts_identical,
            "expert_difference": self.headroom.expert_difference,
        }


def changes(before: RoutingStatistics, after: RoutingStatistics, domain_names: tuple[str, ...]) -> dict[str, Any]:
    """The report's fields on routing, by name."""
    return {
        "max_violation_before": before.max_violation,
        "max_violation_after": after.max_violation,
        "entropy_before": before.entropy,
        "entropy_after": after.entropy,
        "dead_before": sum(len(layer.dead) for layer in before.layers.values()),
        "dead_after": sum(len(layer.dead) for layer in after.layers.values()),
        "layers": _layer_changes(before, after, domain_names),
    }


def _layer_changes(
    before: RoutingStatistics, after: RoutingStatistics, domain_names: tuple[str, ...]
) -> list[LayerChange]:
    """Both states of every layer, side by side."""
    changes = []
    for layer, new in after.layers.items():
        old, domains = before.layers[layer], new.domains
        changes.append(
            LayerChange(
                layer=layer,
                max_violation_before=old.max_violation,
                max_violation_after=new.max_violation,
                entropy_before=old.entropy,
                entropy_after=new.entropy,
                dead_before=list(old.dead),
                dead_after=list(new.dead),
                load_before=old.load.tolist(),
                load_after=new.load.tolist(),
                nmi_after=None if domains is None else domains.nmi,
                own_expert_fraction={}
                if domains is None
                else dict(zip(domain_names, domains.own_expert_fraction.tolist(), strict=True)),
                enrichment=[] if domains is None else [min(float(x), 1e6) for x in domains.enrichment],
            )
        )
    return changes
