"""The plan of the dense checkpoint that one expert a layer makes, the reverse of upcycling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from moeify.checkpoint.arithmetic import FLOAT_DTYPES
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Blend, Copy, Job, Piece, Slice
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.writer import plan_shards
from moeify.errors import CheckpointError
from moeify.families.base import Config, Family
from moeify.families.registry import moe_family
from moeify.pruning.anatomy import Anatomy, Part
from moeify.pruning.plan import PrunePlan

__all__ = ["plan_dense"]


Shares = Sequence[tuple[int, float]]
"""Experts and their shares in a mean."""


def plan_dense(anatomy: Anatomy, experts: Mapping[int, Shares], max_shard_bytes: int) -> PrunePlan:
    """Plan the dense checkpoint whose FFN in each MoE layer is the mean of that layer's experts.

    Every tensor is a copy, but for a mean of several experts. Raises ``UnsupportedModelError`` for
    a mixture that no dense family belongs to, and ``CheckpointError`` where the dense class cannot
    express it.
    """
    source = anatomy.view.checkpoint.config
    family = moe_family(source)
    config = family.to_dense_config(dict(source))
    config["model_type"] = family.model_type
    config["architectures"] = [family.dense_architecture(source)]
    jobs = tuple(_jobs(anatomy, family, config, experts))
    return PrunePlan(
        config=config,
        files=PlannedFiles(shards=plan_shards(jobs, max_shard_bytes)),
        params_before=anatomy.parameters,
        params_after=sum(math.prod(job.shape) for job in jobs),
    )


def _jobs(
    anatomy: Anatomy, family: Family, config: Config, experts: Mapping[int, Shares]
) -> Iterator[Job]:
    view, head = anatomy.view, family.head(config)
    roots = {name.split(".")[0] for name in family.dense.base_tensors(config)}
    layers = {view.layer_prefix(layer): layer for layer in view.moe_layers}
    extras = {prefix + extra.name for prefix in layers for extra in family.moe.extras}
    extras |= anatomy.guards

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
        elif part.kind == "fused" or part.expert == experts[part.layer][0][0]:
            yield from _ffn(anatomy, family, stored, part, experts[part.layer], renamed)


def _ffn(
    anatomy: Anatomy, family: Family, stored: StoredTensor, part: Part, experts: Shares,
    renamed: Callable[[str], str],
) -> Iterator[Job]:  # fmt: skip
    """The FFN tensors that ``stored`` becomes: the tensor of all experts, or of the first one."""
    view = anatomy.view
    prefix = view.layer_prefix(part.layer)
    names = {ffn.role: ffn.name for ffn in family.dense.ffn}
    for spec in view.layout.experts:
        if prefix + spec.name.format(expert=experts[0][0]) != stored.name:
            continue
        shape = list(stored.shape[1:] if spec.fused else stored.shape)
        every = [(view.expert(part.layer, spec, expert)[0], share) for expert, share in experts]
        shape[0] //= len(spec.roles)  # what is joined lies one after the other
        for number, role in enumerate(spec.roles):
            size = math.prod(shape)
            terms = [
                (Slice(whole.tensor, whole.start + number * size, size), share)
                for whole, share in every
            ]
            name = renamed(prefix + names[role])
            yield Job(name, stored.dtype, tuple(shape), (_mean(terms, stored),))
        return
    raise CheckpointError(
        f"tensor {stored.name!r} has no place in a dense {family.model_type}",
        "use the unquantised checkpoint",
        path=stored.path,
    )


def _mean(terms: list[tuple[Slice, float]], stored: StoredTensor) -> Piece:
    if len(terms) == 1:
        return Copy(terms[0][0])
    if stored.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor {stored.name!r} has dtype {stored.dtype}, of which no mean can be taken",
            "use the unquantised checkpoint, or extract one expert",
            path=stored.path,
        )
    return Blend(tuple(terms), stored.dtype)
