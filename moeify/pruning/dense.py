"""The plan of the dense checkpoint that one expert a layer makes, the reverse of upcycling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Copy, Job, Slice
from moeify.checkpoint.writer import plan_shards
from moeify.errors import CheckpointError
from moeify.families.base import Config, Family
from moeify.families.registry import moe_family
from moeify.pruning.anatomy import Anatomy, Part
from moeify.pruning.plan import PrunePlan

__all__ = ["plan_dense"]


def plan_dense(anatomy: Anatomy, experts: Mapping[int, int], max_shard_bytes: int) -> PrunePlan:
    """Plan the dense checkpoint whose FFN in each MoE layer is that layer's one of ``experts``.

    Every tensor is a copy. Raises ``UnsupportedModelError`` for a mixture that no dense family
    belongs to, and ``CheckpointError`` where the dense class cannot express it.
    """
    source = anatomy.view.checkpoint.config
    family = moe_family(source)
    config = family.to_dense_config(dict(source))
    config["model_type"] = family.model_type
    config["architectures"] = [family.dense_architecture(source)]
    jobs = tuple(_jobs(anatomy, family, config, experts))
    return PrunePlan(
        config=config,
        shards=plan_shards(jobs, max_shard_bytes),
        params_before=sum(t.elements for t in anatomy.stored()),
        params_after=sum(piece.source.elements for job in jobs for piece in job.pieces
                         if isinstance(piece, Copy)),
    )  # fmt: skip


def _jobs(
    anatomy: Anatomy, family: Family, config: Config, experts: Mapping[int, int]
) -> Iterator[Job]:
    view, head = anatomy.view, family.head(config)
    roots = {name.split(".")[0] for name in family.dense.base_tensors(config)}
    layers = {view.layer_prefix(layer): layer for layer in view.moe_layers}
    extras = {prefix + extra.name for prefix in layers for extra in family.moe.extras}

    def renamed(name: str) -> str:
        rest = name.removeprefix(view.prefix)
        inside = name.startswith(view.prefix) and rest.split(".")[0] in roots
        return head.prefix + rest if inside and view.prefix == head.prefix_out else name

    for stored in anatomy.stored():
        part = anatomy.parts.get(stored.name)
        if stored.name in extras or (part is not None and part.kind == "router"):
            continue
        if part is None:
            whole = Copy(Slice(stored, 0, stored.elements))
            yield Job(renamed(stored.name), stored.dtype, stored.shape, (whole,))
        elif part.kind == "fused" or part.expert == experts[part.layer]:
            yield _ffn(anatomy, family, stored, part, experts[part.layer], renamed)


def _ffn(
    anatomy: Anatomy, family: Family, stored: StoredTensor, part: Part, expert: int, renamed: object
) -> Job:
    prefix = anatomy.view.layer_prefix(part.layer)
    names = {ffn.role: ffn.name for ffn in family.dense.ffn}
    for spec in family.moe.experts:
        if prefix + spec.name.format(expert=expert) != stored.name:
            continue
        shape = stored.shape[1:] if spec.fused else stored.shape
        size = stored.elements // anatomy.view.num_experts if spec.fused else stored.elements
        start = expert * size if spec.fused else 0
        assert callable(renamed), "a function from MoE names to dense names"
        name = renamed(prefix + names[spec.roles[0]])
        return Job(name, stored.dtype, shape, (Copy(Slice(stored, start, size)),))
    raise CheckpointError(
        f"tensor {stored.name!r} has no place in a dense {family.model_type}",
        "use the unquantised checkpoint",
        path=stored.path,
    )
