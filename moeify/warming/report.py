"""What a warm-up did, measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from moeify.routing.held_out import BlockLosses
from moeify.routing.statistics import RoutingStatistics
from moeify.warming.headroom import Headroom
from moeify.warming.session import Measured


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
    """The loss on one domain of the held-out text; ``change_error`` is the difference's standard error."""

    before: float
    after: float
    before_error: float | None
    after_error: float | None
    change_error: float | None


@dataclass(frozen=True, kw_only=True)
class WarmupReport:
    """What ``warmup`` did. Losses are per token (or label) of the held-out slice, in nats.

    ``loss`` names the task; ``distill`` losses are relative squared distances instead.
    ``eval_loss_errors`` has their standard errors over blocks by name (``before`` of
    ``eval_loss_before``), and that of the difference of after and before as ``change``; None where
    there is one block only. ``fit``
    says how routers were set, ``none`` where they were left alone; ``data_fingerprint`` is the
    SHA-256 of all tokens that were read, held-out ones included. ``entropy`` is the router's
    own, ``max_violation`` MaxVio, ``experts_per_token`` what a token visits, all averaged over the layers. ``curve``
    has the training loss of every step and its parts.
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
    eval_loss_errors: dict[str, float | None]
    domain_losses: dict[str, DomainLoss]
    max_violation_before: float
    max_violation_after: float
    entropy_before: float
    entropy_after: float
    dead_before: int
    dead_after: int
    experts_per_token_before: float
    experts_per_token_after: float
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

    @property
    def has_nulls(self) -> bool:
        """Whether tokens chose null experts in place of some of their experts."""
        return min(self.experts_per_token_before, self.experts_per_token_after) < self.top_k

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
            "eval_loss_errors",
            "max_violation_before",
            "max_violation_after",
            "entropy_before",
            "entropy_after",
            "dead_before",
            "dead_after",
            *(("experts_per_token_before", "experts_per_token_after") if self.has_nulls else ()),
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
        "experts_per_token_before": before.experts_per_token,
        "experts_per_token_after": after.experts_per_token,
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


def eval_losses(*, before: BlockLosses, after: BlockLosses, **others: BlockLosses | None) -> dict[str, Any]:
    """The report's fields on the loss of the whole held-out text, by name."""
    losses = {"before": before, "after": after, **others}
    found = {name: None if one is None else one.estimate() for name, one in losses.items()}
    errors = {name: None if one is None else one.error for name, one in found.items()}
    return {
        **{f"eval_loss_{name}": None if one is None else one.value for name, one in found.items()},
        "eval_loss_errors": errors | {"change": after.above(before).error},
    }


def domain_loss(before: BlockLosses, after: BlockLosses) -> DomainLoss:
    """A domain's losses and their standard errors."""
    old, new = before.estimate(), after.estimate()
    return DomainLoss(
        before=old.value,
        after=new.value,
        before_error=old.error,
        after_error=new.error,
        change_error=after.above(before).error,
    )


def notes_on(headroom: Headroom, before: Measured, after: Measured, random: BlockLosses) -> list[str]:
    """Sentences on what routing is worth, and on what is worse by more than its standard error explains."""
    if headroom.experts_identical:
        return ["the experts are identical: routing cannot change the loss, only balance can improve"]
    notes = _worse("held-out loss", before.losses, after.losses)
    if after.losses.above(random).above_zero:
        notes.append(f"held-out loss is above that of random routing, {random.mean():#.5g}")
    for name, losses in after.domains.items():
        notes += _worse(f"held-out loss of {name!r}", before.domains[name], losses)
    return notes


def _worse(what: str, before: BlockLosses, after: BlockLosses) -> list[str]:
    change = after.above(before)
    if not change.above_zero:
        return []
    sizes = f"{change.value:.2g} +- {change.error:.1g}"
    return [f"{what} got worse by {sizes}: {before.mean():#.5g} before, {after.mean():#.5g} after"]
