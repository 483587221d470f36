"""From a dense checkpoint to a mixture of experts: plan, stream, verify, rename."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import resolve_source
from moeify.checkpoint.staging import check_free_space
from moeify.families.conversion import DENSE_TYPE
from moeify.provenance.exports import untied
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import UNTIED, Step
from moeify.routing.data import Blocks
from moeify.routing.examples import Examples
from moeify.routing.loading import require_accelerate
from moeify.routing.passes import state_bytes
from moeify.upcycling.class_checks import NULL_KINDS
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.firing import firing_text, neurons_by_firing
from moeify.upcycling.plan import UpcyclePlan, plan_upcycle
from moeify.upcycling.recipes import NULLS, papers, recipe_for
from moeify.upcycling.routers import (
    LabelledText,
    fit_routers,
    labelled_text,
    recorded_options,
    router_owners,
    write_routers,
    written_layers,
)
from moeify.upcycling.sources import ExpertOrigin, of_sources
from moeify.upcycling.starting import StartingLoss, starting_loss, starting_text


@dataclass(frozen=True, kw_only=True)
class UpcycleReport:
    """What upcycling did, or with ``dry_run`` would do.

    ``num_experts`` and ``top_k`` count in all ``slices`` together; ``shared_slices`` have neither. ``null_experts``
    are beside them.
    ``noise_effective`` is the root mean square of what the noise changed after rounding to the output's dtype,
    relative to the weights' standard deviation.
    ``sources`` says which experts are made of what, empty for copies of one model; ``label_agreement`` is the share
    of held-out tokens (with prompts of the prompts') whose first expert has their label, averaged over layers, where
    routers were computed from text. ``start`` is the loss before training, where text is given for it.
    """

    source: str
    output: str
    family: str
    model_type: str
    num_experts: int
    top_k: int
    slices: int
    shared_slices: int
    null_experts: int
    route_by: str
    num_layers: int
    moe_layers: tuple[int, ...]
    params_dense: int
    params_total: int
    params_active: int
    bytes_written: int
    bytes_carried: int
    seconds: float
    reinit: float
    noise_requested: float
    noise_effective: float
    router: str
    label_agreement: float | None
    start: StartingLoss | None
    rest: str
    sources: tuple[ExpertOrigin, ...]
    warnings: tuple[str, ...]
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify upcycle --json``."""
        return {"schema": "moeify.upcycle/1", **asdict(self)}


def upcycle(
    source: str | Path,
    output: str | Path | None = None,
    config: UpcycleConfig | None = None,
    *,
    dry_run: bool = False,
    **options: Any,
) -> UpcycleReport:
    """Turn the feed-forward layers of a dense checkpoint into experts.

    Args:
        source: a local folder or a Hub id.
        output: the folder to write; by default one named after source and options.
        config: the options; ``options`` override single fields, as in
            ``upcycle("bert-base-uncased", num_experts=8)``.
        dry_run: stop after the plan; only headers are read.

    With copies and renormalised top-k weights the result computes the dense function for any
    router (Sparse Upcycling, arXiv:2212.05055, section 3); noise perturbs it, see
    docs/methods.md. Raises ``MoeifyError``; nothing is left behind then.
    """
    started = time.perf_counter()
    config = replace(config or UpcycleConfig(), **options)
    resolved = resolve_source(source, config.revision)
    sliced = f"-s{config.slices}" if config.slices > 1 else ""
    target = resolved.output(output, f"moe-e{config.experts}-k{config.top_k}{sliced}")
    new = NewCheckpoint(resolved, target, config, written=not dry_run)
    plan = plan_upcycle(Checkpoint.open(resolved.folder), config, resolved)
    if not dry_run:
        new.check(plan.files, plan.config, beside=(s.source.folder for s in plan.sources))
    report = _report(plan, new, config)
    text = _read_text(plan, config)
    report = replace(report, warnings=(*report.warnings, *text.notes))
    if not dry_run:
        report = _write(plan, text, new, config, report)
    return replace(report, dry_run=dry_run, seconds=time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True)
class _RouterFit:
    """What routers are to be computed from; ``nbytes`` are those that this takes on the disk."""

    text: LabelledText
    owners: list[int]
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class _Text:
    """What is read of the options' text: to fit routers, to deal neurons to slices, to measure the loss."""

    fit: _RouterFit | None
    firing: Blocks | None
    start: Examples | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the text."""
        read = [] if self.firing is None else [self.firing]
        read += [] if self.fit is None else [self.fit.text.fit]
        read += [] if self.start is None else [self.start.blocks]
        return tuple(dict.fromkeys(note for blocks in read for note in blocks.notes))


def _read_text(plan: UpcyclePlan, config: UpcycleConfig) -> _Text:
    return _Text(
        fit=_text_to_fit(plan, config) if config.needs_text else None,
        firing=firing_text(plan.view, config) if config.deals_by_text else None,
        start=starting_text(plan.view, config) if config.measures_start else None,
    )


def _text_to_fit(plan: UpcyclePlan, config: UpcycleConfig) -> _RouterFit:
    require_accelerate()
    checkpoint = plan.view.checkpoint
    dims = plan.view.layout.dims(checkpoint.config)
    labels = [origin.label for origin in plan.origins]
    text = labelled_text(config, checkpoint, labels)
    return _RouterFit(text=text, owners=router_owners(plan, text, config), nbytes=state_bytes(text.tokens, dims["H"]))


def _report(plan: UpcyclePlan, new: NewCheckpoint, config: UpcycleConfig) -> UpcycleReport:
    known = (*plan.view.checkpoint.notes, *new.along.notes, *of_sources(plan.sources))
    return UpcycleReport(
        source=new.source.name,
        output=str(new.target),
        family=plan.view.layout.model_type,
        model_type=plan.conversion.moe.model_type,
        num_experts=plan.settings.num_experts,
        top_k=plan.settings.top_k,
        slices=plan.settings.slices,
        shared_slices=plan.settings.shared,
        null_experts=plan.settings.nulls,
        route_by=config.route_by,
        num_layers=plan.settings.num_layers,
        moe_layers=plan.settings.moe_layers,
        params_dense=plan.parameters.dense,
        params_total=plan.parameters.total,
        params_active=plan.parameters.active,
        bytes_written=plan.files.nbytes,
        bytes_carried=new.along.nbytes,
        seconds=0.0,
        reinit=config.reinit,
        noise_requested=config.noise,
        noise_effective=0.0,
        router=config.router,
        label_agreement=None,
        start=None,
        rest=config.rest,
        sources=plan.origins,
        warnings=(*known, *plan.warnings),
        dry_run=True,
    )


def _write(
    plan: UpcyclePlan, text: _Text, new: NewCheckpoint, config: UpcycleConfig, report: UpcycleReport
) -> UpcycleReport:
    fit, firing = text.fit, text.firing
    if fit is not None:
        check_free_space(new.target, plan.files.nbytes + new.along.nbytes + fit.nbytes)
    with new.opened() as stage:
        if firing is not None:
            slices = neurons_by_firing(plan.view, firing, config, plan.settings.moe_layers)
            plan = plan_upcycle(Checkpoint.open(new.source.folder), config, new.source, slices)
        tally = new.write(plan.files, check=plan.ffn)
        if fit is not None:
            agreement = _fit_routers(stage, plan, fit, config)
            report = replace(report, label_agreement=agreement)
        if text.start is not None:
            report = replace(report, start=starting_loss(stage, plan.config, plan.view, text.start, config))
        warnings = list(report.warnings)
        if tally.overflows:
            warnings.append(
                f"{tally.overflows} weights are beyond the 65504 that float16 holds and became"
                " infinite: pass --dtype bfloat16, or less --noise"
            )
        report = replace(report, noise_effective=tally.relative_std, warnings=tuple(warnings))
        new.finish(plan.config, _step(config, report, plan))
    return report


def _fit_routers(stage: Path, plan: UpcyclePlan, fit: _RouterFit, config: UpcycleConfig) -> float:
    """Compute the routers of the mixture in ``stage`` and write them in place of its own."""
    layout = plan.conversion.moe
    with written_layers(stage, layout, plan.config, config.low_memory) as passes:
        fitted = fit_routers(passes, plan, fit.text, fit.owners, config)
    write_routers(stage, plan.with_routers(fitted.rows).files)
    return fitted.agreement


def _step(config: UpcycleConfig, report: UpcycleReport, plan: UpcyclePlan) -> Step:
    options = recorded_options(config)
    options["num_experts"] = config.experts
    for key in ("experts_from", "labels", "rest", "shares"):
        if not config.experts_from:
            del options[key]
    plain = {
        "arch": None,
        "recipe": None,
        "slices": 1,
        "shared": 0,
        "slice_by": "order",
        "reinit": 0,
        "router_bias": False,
        "null_experts": 0,
        "null_kinds": NULL_KINDS[:1],
    }
    options = {key: value for key, value in options.items() if key not in plain or value != plain[key]}
    if config.experts_from:
        options["experts_from"] = [origin.name for origin in report.sources]
    keys = ("params_dense", "params_total", "params_active", "noise_effective")
    results = {key: getattr(report, key) for key in keys} | {DENSE_TYPE: report.family}
    results["papers"] = papers(recipe_for(config), report.sources, config.router)
    results["papers"] += [NULLS] if config.null_experts else []
    if plan.settings.untied:
        results[UNTIED] = sorted(untied(plan.view.head, plan.settings, plan.view.heads))
    if report.sources:
        results["sources"] = [asdict(origin) for origin in report.sources]
    if report.start is not None:
        results |= {"loss": report.start.loss, "eval_tokens": report.start.tokens}
        results |= {"eval_loss_dense": report.start.dense, "eval_loss": report.start.mixture}
    if report.label_agreement is not None:
        results["label_agreement"] = report.label_agreement
    return Step(command="upcycle", options=options, results=results)
