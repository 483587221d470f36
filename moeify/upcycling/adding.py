"""One expert more in a mixture that exists, with a router row of its own."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeify.checkpoint.arithmetic import Float32, encode
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.checkpoint.jobs import Copy, Job, Literal, Piece, piece_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.rewrite import plan_rewrite
from moeify.checkpoint.slices import Slice, whole
from moeify.checkpoint.source import Source, resolve_source
from moeify.checkpoint.turning import turned
from moeify.checkpoint.writer import parse_size
from moeify.errors import CheckpointError, ConfigError
from moeify.families.conversion import Conversion
from moeify.families.laying import turned_roles
from moeify.families.mixture import Mixture, open_mixture
from moeify.families.registry import origin
from moeify.families.slicing import slice_of
from moeify.families.values import Config, text_config
from moeify.provenance.exports import check_unscaled
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import Record, Step
from moeify.routing.config import ROUTER_INITS, RouterInit
from moeify.routing.initialization import RouterRows, logit_std
from moeify.upcycling.comparing import compare_joining
from moeify.upcycling.config import MAX_EXPERTS, AddConfig
from moeify.upcycling.ingredients import laid
from moeify.upcycling.recipes import RECIPES, papers
from moeify.upcycling.routers import (
    FittedRouters,
    LabelledText,
    joining_rows,
    labelled_text,
    recorded_options,
    write_routers,
    written_layers,
)
from moeify.upcycling.sources import ExpertOrigin, ExpertSource, of_sources, open_dense


@dataclass(frozen=True, kw_only=True)
class AddReport:
    """What adding experts did, or with ``dry_run`` would do.

    ``label_agreement`` is the share of the labels' held-out tokens (with prompts of the prompts')
    that visit their new expert first, averaged over layers, where its row was computed from text.
    """

    source: str
    output: str
    model_type: str
    num_experts_before: int
    num_experts: int
    top_k: int
    moe_layers: tuple[int, ...]
    added: tuple[ExpertOrigin, ...]
    router: str
    label_agreement: float | None
    params_added: int
    files_linked: int
    files_copied: int
    bytes_written: int
    bytes_carried: int
    warnings: tuple[str, ...]
    dry_run: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify add --json``."""
        return {"schema": "moeify.add/1", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class _Joining:
    """A mixture and the dense checkpoints that join it."""

    view: Mixture
    conversion: Conversion
    entries: tuple[ExpertSource, ...]

    @property
    def num_experts(self) -> int:
        """Experts of a layer when all have joined, one of each entry in every slice."""
        return self.view.num_experts + self.view.slices * len(self.entries)

    @property
    def origins(self) -> tuple[ExpertOrigin, ...]:
        each = self.num_experts // self.view.slices
        first = each - len(self.entries)
        return tuple(
            ExpertOrigin(
                name=entry.source.name,
                revision=entry.source.revision,
                label=entry.label,
                experts=tuple(range(first + place, self.num_experts, each)),
            )
            for place, entry in enumerate(self.entries)
        )

    def piece(self, entry: ExpertSource, layer: int, role: str, number: int, dtype: str) -> Piece:
        """Slice ``number`` of one FFN tensor of a newcomer, as it lies in experts."""
        run, weight = slice_of(entry.view, layer, role, number, self.view.slices)
        if role in turned_roles(self.view.layout.experts, self.conversion.dense.ffn):
            run = turned(run, entry.view.ffn(layer)[role].shape)
        return piece_of(run, dtype, weight=weight)


def add_experts(
    checkpoint: str | Path,
    output: str | Path | None = None,
    config: AddConfig | None = None,
    *,
    dry_run: bool = False,
    **options: Any,
) -> AddReport:
    """Let the FFNs of dense checkpoints join a mixture as its last experts, those of every slice.

    Every other tensor, and every other row of the routers, stays bit for bit what it was; files
    that hold no routers and no stacked experts are linked. Raises ``MoeifyError``; nothing is left
    behind then.
    """
    started = time.perf_counter()
    config = replace(config, **options) if config is not None else AddConfig(**options)
    source = resolve_source(checkpoint, config.revision)
    joining = _open(source, config)
    view, labels = joining.view, [entry.label for entry in joining.entries]
    number = joining.num_experts
    target = source.output(output, f"e{number}")
    new = NewCheckpoint(source, target, config, written=not dry_run)
    compared = compare_joining(view, joining.conversion.dense, joining.entries)
    plan = _plan(joining, _calibrated(joining, config), target, config)
    if not dry_run:
        folders = (entry.source.folder for entry in joining.entries)
        new.check(plan, _config(view, number), beside=folders)
    warnings = (*view.checkpoint.notes, *new.along.notes, *of_sources(joining.entries), *compared)
    report = _report(joining, plan, new, config)
    text = None
    if config.needs_text:
        text = labelled_text(config, view.checkpoint, labels, others=True)
        warnings = (*warnings, *text.fit.notes)
    report = replace(report, warnings=warnings, dry_run=dry_run)
    if not dry_run:
        with new.opened() as stage:
            new.write(plan, check=_newcomers(joining))
            if text is not None:
                fitted = _fitted(joining, stage, text, labels, config)
                write_routers(stage, _plan(joining, fitted.rows, target, config))
                report = replace(report, label_agreement=fitted.agreement)
            new.finish(_config(view, number), _step(config, report))
    return replace(report, seconds=time.perf_counter() - started)


def _fitted(joining: _Joining, stage: Path, text: LabelledText, labels: list[str], config: AddConfig) -> FittedRouters:
    """Rows of the newcomers, computed from text in the mixture that ``stage`` holds by now."""
    view = joining.view
    grown = _config(view, joining.num_experts)
    with written_layers(stage, view.layout, grown, config.low_memory) as passes:
        found = joining_rows(passes, view, text, labels, config)
    each = view.num_experts // view.slices
    parts = {n: rows.reshape(view.slices, -1, view.hidden_size)[:, each:] for n, rows in found.rows.items()}
    return replace(found, rows={n: part.reshape(-1, view.hidden_size) for n, part in parts.items()})


def _open(source: Source, config: AddConfig) -> _Joining:
    opened = Checkpoint.open(source.folder)
    record = Record.read(source)
    conversion = origin(opened.config, record.dense_type)
    view = open_mixture(opened)
    _check_mixture(source, view, record)
    added = view.slices * len(config.experts)
    if view.num_experts + added > MAX_EXPERTS:
        raise ConfigError(f"{view.num_experts} experts and {added} more are over {MAX_EXPERTS}", "add fewer")
    found = [open_dense(resolve_source(text)) for text in config.experts]
    labels = config.labels or tuple(entry.label for entry in found)
    entries = (replace(entry, label=label) for entry, label in zip(found, labels, strict=True))
    return _Joining(view=view, conversion=conversion, entries=tuple(entries))


def _check_mixture(source: Source, view: Mixture, record: Record) -> None:
    if view.numbering.tied > 1:
        raise ConfigError(
            f"no expert can join this {view.layout.model_type}, whose groups of experts are copies in"
            f" {view.slices} slices",
            "upcycle the base again with one more expert, by --experts-from",
        )
    if view.shared_slices:
        raise ConfigError(
            "no expert can join a mixture in which tokens share slices: its part of those would have no place",
            "add experts to a mixture that was upcycled without --shared",
        )
    for layer in view.moe_layers:
        if view.router(layer) is None:
            raise CheckpointError(f"layer {layer} has no router", f"run moeify attach {source.name} first")
    check_unscaled(source.name, view.config, record)


def _calibrated(joining: _Joining, config: AddConfig) -> dict[int, Float32]:
    """Rows of independent directions, as large as those that are there."""
    view, rows = joining.view, {}
    init: RouterInit = "calibrated"
    if config.router in ROUTER_INITS:
        init = config.router
    with SourceFiles() as files:
        for layer in view.moe_layers:
            norm, router = view.norm(layer), view.router(layer)
            assert router is not None, "checked when it was opened"
            piece = RouterRows(
                init=init,
                num_experts=view.slices * len(joining.entries),
                hidden_size=view.hidden_size,
                dtype=router.dtype,
                norm=norm,
                norm_bias=view.norm_bias(layer),
                norm_offset=view.layout.norm_offset,
                key=(config.seed, "joining", view.layout.layer.format(layer=layer)),
            )
            drawn = piece.values(files)
            old = files.values(whole(router))
            gain = None if norm is None else files.values(whole(norm))
            size = logit_std(old.reshape(view.num_experts, -1), gain)
            own = logit_std(drawn, gain)
            rows[layer] = drawn * np.float32(size / own) if init == "calibrated" and own else drawn
    return rows


def _plan(joining: _Joining, rows: dict[int, Float32], target: Path, config: AddConfig) -> PlannedFiles:
    view, max_shard_bytes = joining.view, parse_size(config.max_shard_size)
    jobs = [job for layer in view.moe_layers for job in _expert_jobs(joining, layer)]
    routers = [job for layer in view.moe_layers for job in _router_jobs(view, layer, rows[layer])]
    return plan_rewrite(view.checkpoint, jobs, target, max_shard_bytes, last=routers)


def _expert_jobs(joining: _Joining, layer: int) -> Iterator[Job]:
    view, prefix = joining.view, joining.view.layer_prefix(layer)
    for spec in view.layout.experts:
        old = view.checkpoint[prefix + spec.name.format(expert=0)]
        if old.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor {old.name!r} has dtype {old.dtype}: no expert can join quantised ones",
                "use the unquantised checkpoint",
                path=old.path,
            )
        one = old.shape[1:] if spec.fused else old.shape
        pieces = [
            [
                piece
                for entry in joining.entries
                for piece in laid([joining.piece(entry, layer, role, n, old.dtype) for role in spec.roles], spec, one)
            ]
            for n in range(view.slices)
        ]
        if spec.fused:
            yield Job(old.name, old.dtype, (joining.num_experts, *old.shape[1:]), tuple(_grown(view, old, pieces)))
            continue
        for place, piece in enumerate(pieces[0], view.num_experts):
            yield Job(prefix + spec.name.format(expert=place), old.dtype, old.shape, (piece,))


def _grown(view: Mixture, old: StoredTensor, pieces: list[list[Piece]]) -> Iterator[Piece]:
    """``old`` slice by slice, with the newcomers of each behind its own experts."""
    size = old.elements // view.slices
    for number, newcomers in enumerate(pieces):
        yield Copy(Slice(old, number * size, size))
        yield from newcomers


def _router_jobs(view: Mixture, layer: int, rows: Float32) -> Iterator[Job]:
    """The router with ``rows`` below its own, slice by slice, and its biases with zeros behind theirs."""
    router = view.router(layer)
    assert router is not None, "checked when it was opened"
    for old in (router, *view.router_biases(layer)):
        axis, added = view.counted[old.name].axis, rows if old is router else np.zeros(len(rows), np.float32)
        shape = list(old.shape)
        shape[axis] += len(rows)  # the axes before it, if any, count one
        parts: list[list[Piece]] = [[Literal(encode(part, old.dtype))] for part in np.split(added, view.slices)]
        yield Job(old.name, old.dtype, tuple(shape), tuple(_grown(view, old, parts)))


def _report(joining: _Joining, plan: PlannedFiles, new: NewCheckpoint, config: AddConfig) -> AddReport:
    view = joining.view
    biases = sum("E" in extra.shape for extra in joining.conversion.parameters(view.config))
    each = sum(total // view.num_experts for total in view.expert_parameters.values())
    each += len(view.moe_layers) * (view.hidden_size + biases)
    return AddReport(
        source=new.source.name,
        output=str(new.target),
        model_type=view.layout.model_type,
        num_experts_before=view.num_experts,
        num_experts=joining.num_experts,
        top_k=view.top_k,
        moe_layers=view.moe_layers,
        added=joining.origins,
        router=config.router,
        label_agreement=None,
        params_added=(joining.num_experts - view.num_experts) * each,
        files_linked=len(plan.linked),
        files_copied=len(plan.copied),
        bytes_written=plan.nbytes,
        bytes_carried=new.along.nbytes,
        warnings=(),
        dry_run=False,
        seconds=0.0,
    )


def _newcomers(joining: _Joining) -> Iterator[StoredTensor]:
    for layer in joining.view.moe_layers:
        for entry in joining.entries:
            yield from entry.view.ffn(layer).values()


def _config(view: Mixture, num_experts: int) -> Config:
    config = copy.deepcopy(view.checkpoint.config)
    view.layout.recount(text_config(config), num_experts)
    return config


def _step(config: AddConfig, report: AddReport) -> Step:
    options = recorded_options(config) | {"experts": [origin.name for origin in report.added]}
    results: dict[str, Any] = {
        "num_experts": report.num_experts,
        "sources": [asdict(origin) for origin in report.added],
        "papers": papers(RECIPES["sources"], report.added, config.router),
    }
    if report.label_agreement is not None:
        results["label_agreement"] = report.label_agreement
    return Step(command="add", options=options, results=results)
