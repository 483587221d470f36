"""What inspect found, as one document."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from moeify.families.dense_checks import Outlook
from moeify.families.keys import layout_key
from moeify.families.moe_layout import MoeLayout
from moeify.families.problems import Problem
from moeify.families.values import Config
from moeify.inspection.opening import Opened, Shard
from moeify.inspection.running import Running
from moeify.provenance.record import Record

if TYPE_CHECKING:
    from moeify.inspection.token_routes import TokenRoutes
    from moeify.inspection.verification import Verified
    from moeify.routing.statistics import LayerRouting


@dataclass(frozen=True, kw_only=True)
class RouterFacts:
    """How routers turn logits into experts and weights.

    ``groups`` is the number of expert groups and how many a token keeps; None for one group.
    ``route_by`` says what a router decides for, token or sequence, ``slices`` how many parts of a copy are experts; in
    each of them a router chooses by itself, unless they are ``tied``, so that groups are copies; ``null_experts`` may
    stand for all of a token's experts but the first.
    """

    scores: str
    renormalised: bool
    scaling: float
    selection_bias: bool
    groups: tuple[int, int] | None
    route_by: str
    slices: int
    tied: bool
    null_experts: int

    @classmethod
    def of(cls, layout: MoeLayout, config: Config) -> RouterFacts:
        """The facts that a layout and config.json give."""
        rule = layout.rule
        return cls(
            scores=rule.scores,
            renormalised=rule.renormalises(config),
            scaling=rule.scaling(config),
            selection_bias=rule.selection_bias is not None,
            groups=rule.group_counts(config),
            route_by=rule.route_by(config),
            slices=rule.slices(config),
            tied=rule.tied_slices and rule.slices(config) > 1,
            null_experts=rule.null_experts(config),
        )


@dataclass(kw_only=True)
class LayerReport:
    """One MoE layer: what its files hold and, as far as asked for, its weights and routing."""

    layer: int
    num_experts: int
    expert_parameters: int
    weights: dict[str, Any] = field(default_factory=dict)
    routing: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document: what was not asked for is left out."""
        return {
            "layer": self.layer,
            "num_experts": self.num_experts,
            "expert_parameters": self.expert_parameters,
            **self.weights,
            **self.routing,
        }


@dataclass(kw_only=True)
class InspectReport:
    """Everything that inspect found.

    ``kind`` is moe, dense or unknown (a ``model_type`` that moeify has no layout for).
    ``params_active`` counts what one token uses. ``parts`` maps parts of the model to parameters
    and stored bytes. ``running`` is what running it takes. ``bytes`` are those of all tensors. ``sums``
    holds each layer's routing for pictures; it is no part of the document.
    """

    source: str
    revision: str | None
    kind: str
    model_type: str | None
    architecture: str | None
    num_layers: int | None = None
    moe_layers: tuple[int, ...] = ()
    num_experts: int | None = None
    top_k: int | None = None
    num_shared_experts: int | None = None
    ffn_size: int | None = None
    router: RouterFacts | None = None
    tied_embeddings: bool | None = None
    params_total: int | None = None
    params_active: int | None = None
    bytes: int = 0
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    running: Running | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    num_tensors: int = 0
    provenance: Record | None = None
    upcycled: Outlook | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    routing: dict[str, Any] | None = None
    verified: Verified | None = None
    tokens: TokenRoutes | None = None
    sums: dict[int, LayerRouting] = field(default_factory=dict)
    domain_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, opened: Opened) -> InspectReport:
        """What can be said of any checkpoint, whatever its model type."""
        named = opened.config.get("architectures")
        dtypes: dict[str, int] = {}
        for stored in opened.tensors.values():
            dtypes[stored.dtype] = dtypes.get(stored.dtype, 0) + stored.nbytes
        return cls(
            source=opened.name,
            revision=opened.revision,
            kind="unknown",
            model_type=layout_key(opened.config),
            architecture=str(named[0]) if isinstance(named, list) and named else None,
            bytes=sum(dtypes.values()),
            dtypes=dict(sorted(dtypes.items(), key=lambda item: (-item[1], item[0]))),
            shards=list(opened.shards),
            num_tensors=len(opened.tensors),
            provenance=opened.record,
            problems=list(opened.problems),
            notes=list(opened.notes),
        )

    @property
    def expert_labels(self) -> tuple[str, ...] | None:
        """What each expert knows, where moeify.json says it."""
        return None if self.provenance is None else self.provenance.expert_labels(self.num_experts or 0)

    @property
    def telling(self) -> LayerReport:
        """The layer that has most to do with the domains, or the one in the middle."""
        if (self.routing or {}).get("domains"):
            return max(self.layers, key=lambda layer: float(layer.routing["domains"]["nmi"]))
        return self.layers[len(self.layers) // 2]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify inspect --json``; the same input gives the same bytes."""
        return {
            "schema": "moeify.inspect/1",
            "source": self.source,
            "revision": self.revision,
            "kind": self.kind,
            "model_type": self.model_type,
            "architecture": self.architecture,
            "num_layers": self.num_layers,
            "moe_layers": list(self.moe_layers),
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "num_shared_experts": self.num_shared_experts,
            "ffn_size": self.ffn_size,
            "router": None if self.router is None else asdict(self.router),
            "tied_embeddings": self.tied_embeddings,
            "params_total": self.params_total,
            "params_active": self.params_active,
            "bytes": self.bytes,
            "parts": self.parts,
            "running": None if self.running is None else self.running.to_dict(),
            "dtypes": self.dtypes,
            "num_tensors": self.num_tensors,
            "shards": [asdict(shard) for shard in self.shards],
            "provenance": None if self.provenance is None else asdict(self.provenance),
            "upcycled": None if self.upcycled is None else self.upcycled.to_dict(),
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
            "layers": [layer.to_dict() for layer in self.layers],
            "routing": self.routing,
            **({} if self.verified is None else {"verified": self.verified.to_dict()}),
            **({} if self.tokens is None else {"tokens": self.tokens.to_dict()}),
        }
