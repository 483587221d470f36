"""The plan of the dense checkpoint that one expert a layer makes, the reverse of upcycling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.gather import Beside
from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.checkpoint.jobs import Blend, Copy, Job, Piece, copy_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.slices import Run, whole
from moeify.checkpoint.source import Source
from moeify.checkpoint.turning import turned
from moeify.checkpoint.writer import plan_shards
from moeify.errors import CheckpointError
from moeify.families.base import DenseLayout, Head
from moeify.families.conversion import Conversion
from moeify.families.joining import joined_jobs
from moeify.families.laying import role_part, role_shape, turned_roles
from moeify.families.mixture import Mixture
from moeify.families.mixture_places import Place
from moeify.families.moe_layout import ExpertTensor
from moeify.families.registry import origin
from moeify.families.values import Config
from moeify.provenance.record import Record
from moeify.pruning.plan import PrunePlan, forget_further

Shares = Sequence[tuple[int, float]]
"""Experts and their shares in a mean."""
Joined = Sequence[Shares]
"""Those of each slice of experts, whose neurons are joined; as many, with the same shares, in each."""


def plan_dense(
    mixture: Mixture, experts: Mapping[int, Joined], max_shard_bytes: int, *, further: bool = True
) -> PrunePlan:
    """Plan the dense checkpoint whose FFN in each MoE layer is the mean of that layer's experts, slices joined.

    Every tensor is a copy, but for a mean of several experts. An output that upcycling set apart from the embeddings
    is shared again where it still equals them. Tensors for ``further`` tokens go along where they hold no experts.
    Raises ``UnsupportedModelError`` for a mixture that no dense family belongs to, and ``CheckpointError`` where the
    dense class cannot express it.
    """
    folder = mixture.checkpoint.folder
    record = Record.read(Source(folder=folder, name=folder.name))
    conversion = origin(mixture.config, record.dense_type)
    config = conversion.dense_config(mixture.config)
    _check_silent(mixture, conversion)
    further = further and not mixture.further_experts
    if mixture.extra and not further:
        forget_further(config)
    made = _jobs(mixture, conversion, config, experts, further)
    if (apart := record.untied) is not None and _still_equal(mixture, conversion.dense.head(config)):
        config["tie_word_embeddings"] = True
        made = (job for job in made if job.name not in apart)
    jobs = tuple(joined_jobs(made, conversion.dense.joined))
    return PrunePlan(
        config=config,
        files=PlannedFiles(shards=plan_shards(jobs, max_shard_bytes)),
        params_before=mixture.stored_parameters(further),
        params_after=sum(math.prod(job.shape) for job in jobs),
    )


def _still_equal(mixture: Mixture, head: Head) -> bool:
    """Whether outputs that may share the embeddings hold what these hold."""
    held = mixture.checkpoint.tensors
    pairs = [(held.get(n), held.get(mixture.prefix + own.removeprefix(head.prefix))) for n, own in head.tied.items()]
    with SourceFiles() as files:
        return all(one is not None and other is not None and files.same(one, other) for one, other in pairs)


def _check_silent(mixture: Mixture, conversion: Conversion) -> None:
    """Raise ``CheckpointError`` where something that the dense class has no place for adds to it."""
    names = [extra.name for extra in conversion.extras if extra.silences]
    if not mixture.shared_slices:  # where a class has to have shared experts, they hold zeros
        names += [spec.name for spec in mixture.layout.shared if "down" in spec.roles]
    with SourceFiles() as files:
        for layer in mixture.moe_layers if names else ():
            for name in names:
                stored = mixture.checkpoint.tensors.get(mixture.layer_prefix(layer) + name)
                if stored is not None and not files.is_zero(stored):
                    raise CheckpointError(
                        f"this mixture has {_what(mixture, name)} ({stored.name!r} is not zero), which no dense"
                        f" {conversion.dense.model_type} can express",
                        "only a mixture that was upcycled from a dense model becomes one again",
                    )


def _what(mixture: Mixture, name: str) -> str:
    return "null experts" if name in {spec.name for spec in mixture.layout.null_experts} else "shared experts"


def _jobs(
    mixture: Mixture, conversion: Conversion, config: Config, experts: Mapping[int, Joined], further: bool
) -> Iterator[Job]:
    dense = conversion.dense
    head, moe_prefix = dense.head(config), conversion.moe_prefix(config)
    roots = {name.split(".")[0] for name in dense.base_tensors(config)}
    prefixes = [mixture.layer_prefix(layer) for layer in mixture.moe_layers]
    ours = {extra.name for extra in (*conversion.extras, *mixture.layout.null_experts)}
    extras = {prefix + name for prefix in prefixes for name in ours}
    extras |= mixture.guards | {prefix + spec.name for prefix in prefixes for spec in mixture.layout.shared}

    def renamed(name: str) -> str:
        rest = name.removeprefix(mixture.prefix)
        inside = name.startswith(mixture.prefix) and rest.split(".")[0] in roots
        return head.prefix + rest if inside and mixture.prefix == moe_prefix else name

    for stored in mixture.stored(further):
        place = mixture.counted.get(stored.name)
        if stored.name in extras or (place is not None and place.kind == "router"):
            continue
        if place is None:
            piece = copy_of(stored, stored.dtype)
            yield Job(renamed(stored.name), stored.dtype, stored.shape, (piece,))
        elif place.kind == "fused" or place.expert == experts[place.layer][0][0][0]:
            yield from _ffn(mixture, dense, stored, place, experts[place.layer], renamed)


def _ffn(
    mixture: Mixture,
    dense: DenseLayout,
    stored: StoredTensor,
    place: Place,
    experts: Joined,
    renamed: Callable[[str], str],
) -> Iterator[Job]:
    """The FFN tensors that ``stored`` becomes: the tensor of all experts, or of the first one."""
    spec = place.plain
    if spec is None:
        raise CheckpointError(
            f"tensor {stored.name!r} has no place in a dense {dense.model_type}",
            "use the unquantised checkpoint",
            path=stored.path,
        )
    prefix = mixture.layer_prefix(place.layer)
    names = {ffn.role: ffn.name for ffn in dense.ffn}
    exchanged = turned_roles(mixture.layout.experts, dense.ffn)
    stacked = stored.shape[1:] if spec.fused else stored.shape
    shared = _shared(mixture, place.layer, spec)
    for role in spec.roles:
        shape, axis = role_shape(spec, stacked), spec.neuron_axis

        def part(expert: int, role: str = role, shape: tuple[int, ...] = shape) -> Run:
            found = role_part(mixture.expert(place.layer, spec, expert)[0], spec, stacked, role)
            return turned(found, shape) if role in exchanged else found

        if role in exchanged and axis is not None:
            shape, axis = (shape[1], shape[0]), 1 - axis
        every = [[(part(expert), share) for expert, share in one] for one in experts]
        neurons = 0 if axis is None else shape[axis] * len(experts)
        if shared is not None:
            beside, tensor = shared
            every.append([(role_part(whole(tensor), beside, tensor.shape, role), share) for _, share in experts[0]])
            neurons += 0 if axis is None else role_shape(beside, tensor.shape)[axis]
        pieces = (_mean(terms, stored) for terms in _joined(every, axis, math.prod(shape[:axis])))
        size = tuple(neurons if at == axis else length for at, length in enumerate(shape))
        yield Job(renamed(prefix + names[role]), stored.dtype, size, tuple(pieces))


def _shared(mixture: Mixture, layer: int, spec: ExpertTensor) -> tuple[ExpertTensor, StoredTensor] | None:
    """The tensor of the slices that every token visits beside one of experts; None without such slices."""
    if not mixture.shared_slices:
        return None
    shared = next(shared for shared in mixture.layout.shared if shared.roles == spec.roles)
    return shared, mixture.checkpoint[mixture.layer_prefix(layer) + shared.name]


def _joined(every: list[list[tuple[Run, float]]], axis: int | None, rows: int) -> list[list[tuple[Run, float]]]:
    """The terms of each piece, of the terms of each slice of experts: neurons joined, last biases added up."""
    if len(every) == 1 or axis == 0:
        return [list(terms) for terms in every]
    if axis is None:
        return [[term for terms in every for term in terms]]
    return [[(Beside(tuple(part for part, _ in same), rows), same[0][1]) for same in zip(*every, strict=True)]]


def _mean(terms: list[tuple[Run, float]], stored: StoredTensor) -> Piece:
    if len(terms) == 1:
        return Copy(terms[0][0])
    if stored.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor {stored.name!r} has dtype {stored.dtype}, of which no mean can be taken",
            "use the unquantised checkpoint, or extract one expert",
            path=stored.path,
        )
    return Blend(tuple(terms), stored.dtype)
