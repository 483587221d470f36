"""Experts taken out of a mixture."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.jobs import Piece
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.replacing import remove_partial
from moeify.checkpoint.source import Source, resolve_source
from moeify.checkpoint.writer import parse_size
from moeify.errors import ConfigError
from moeify.families.keys import layout_key
from moeify.families.mixture import Mixture
from moeify.provenance.companions import write_config
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import Record, Step
from moeify.pruning.chance import compare_losses
from moeify.pruning.config import PruneConfig
from moeify.pruning.criteria import CRITERIA
from moeify.pruning.dense import plan_dense
from moeify.pruning.evaluation import loss_of
from moeify.pruning.further import chosen_without_text, said_of_further
from moeify.pruning.merging import MERGING, check_merging, merged_pieces
from moeify.pruning.opening import open_prunable
from moeify.pruning.plan import PrunePlan, plan_prune
from moeify.pruning.report import HeldOutLoss, PruneReport
from moeify.pruning.scores import SCORES_FILE, Scores
from moeify.pruning.scoring import Text, expert_scores, read_text, stored_scores, text_scores
from moeify.pruning.selection import further_layers, goes_further, kept_by_hand, number_to_keep, select
from moeify.pruning.weights import check_weights
from moeify.routing.passes import runs_by_layer


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Which experts stay, and why."""

    kept: dict[int, tuple[int, ...]]
    scores: dict[int, tuple[float, ...]] = field(default_factory=dict)
    protected: dict[int, tuple[int, ...]] = field(default_factory=dict)
    calibrated: Scores | None = None
    merged: dict[tuple[str, int], Piece] | None = None
    layer_by_layer: bool = False


def prune(
    checkpoint: str | Path, output: str | Path | None = None, config: PruneConfig | None = None, **options: Any
) -> PruneReport:
    """Take experts out of every MoE layer of ``checkpoint``.

    Args:
        checkpoint: a local folder or a Hub id.
        output: the folder to write; by default one named after source and options.
        config: the options; ``options`` override single fields, as in
            ``prune("my-moe", keep=4, by="reap", dataset="book.txt")``.

    Byte ranges are copied, so dtype and quantisation do not matter and memory stays flat. Removing
    a router's rows equals masking their logits with -inf. Raises ``MoeifyError``; nothing is left
    behind then, except for the scores of an interrupted calibration, which the next run completes.
    """
    started = time.perf_counter()
    config = PruneConfig(**options) if config is None else replace(config, **options)
    source = resolve_source(checkpoint, config.revision)
    mixture = open_prunable(Checkpoint.open(source.folder))
    keep = number_to_keep(mixture, config)
    target = source.output(output, _suffix(config, keep))
    new = NewCheckpoint(source, target, config, leave=(SCORES_FILE,))  # those are the source's
    _check(mixture, new, config, keep)
    remove_partial(_partial(target, config))
    stored = stored_scores(mixture, config)
    text = read_text(mixture, config)
    choice = _choose(source, mixture, target, config, keep, text, stored)
    if config.merge:
        scores = choice.calibrated
        counts = None if scores is None else scores.frequency
        merged = merged_pieces(mixture, choice.kept, counts, choice.protected)
        choice = replace(choice, merged=merged)
    plan = _plan(mixture, choice, config)
    report = _report(mixture, source, target, config, choice, plan)
    known = (*mixture.checkpoint.notes, *new.along.notes, *report.warnings)
    report = replace(report, warnings=known, bytes_carried=new.along.nbytes)
    with new.opened() as stage:
        new.write(plan.files)
        _write_scores(stage, config, choice)
        if config.evaluate and text is not None and text.held_out is not None:
            write_config(stage, plan.config)
            plainly = choice.kept if config.merge else None
            losses = compare_losses(mixture, source, stage, keep, config, text.held_out, plainly)
            report = replace(report, held_out=losses, warnings=(*report.warnings, *_said(losses)))
        new.finish(plan.config, _step(config, report, source))
    if choice.calibrated is not None and config.scores is None:
        _partial(target, config).unlink(missing_ok=True)  # its content is in the output by now
    return replace(report, seconds=time.perf_counter() - started)


def _check(mixture: Mixture, new: NewCheckpoint, config: PruneConfig, keep: int) -> None:
    """Everything that is known before the long work starts."""
    sample = dict.fromkeys((*mixture.moe_layers, *further_layers(mixture, config)), tuple(range(keep)))
    plan = _plan(mixture, _Choice(kept=sample), config)
    new.check(plan.files, plan.config, more_bytes=plan.files.nbytes if config.evaluate else 0)
    rule = mixture.layout.rule
    grows = rule.scores == "softmax" and not rule.renormalises(mixture.config)
    if config.rescale and not grows:
        raise ConfigError(
            f"the weights of {mixture.layout.model_type} do not grow when experts go: there is nothing to rescale",
            "leave --rescale out",
        )
    if config.rescale:
        mixture.check_plain("quantised experts cannot be rescaled", "leave --rescale out")
    if config.merge:
        check_merging(mixture)
    if config.drop is None and CRITERIA[config.criterion].reads_weights:
        check_weights(mixture, config.criterion)
    if config.evaluate:
        loss_of(mixture.config)


def _suffix(config: PruneConfig, keep: int) -> str:
    """``e4-reap``, what is behind the source's name in that of the output."""
    how = "by-hand" if config.drop is not None else config.criterion
    return "dense" if config.dense else f"e{keep}-{how}"


def _plan(mixture: Mixture, choice: _Choice, config: PruneConfig) -> PrunePlan:
    limit = parse_size(config.max_shard_size)
    further = goes_further(mixture, config)
    if config.dense:
        joined = {n: [((e, 1.0),) for e in kept] for n, kept in choice.kept.items()}
        return plan_dense(mixture, joined, limit, further=further)
    factors = {}
    if config.rescale and choice.calibrated is not None:
        layers = choice.calibrated.layers
        factors = {n: layers[n].kept_probability(kept) for n, kept in choice.kept.items() if n in layers}
    blends = choice.merged if config.merge else None
    return plan_prune(mixture, choice.kept, limit, blends, down_factors=factors, further=further)


def _choose(
    source: Source,
    mixture: Mixture,
    target: Path,
    config: PruneConfig,
    keep: int,
    text: Text | None,
    scores: Scores | None,
) -> _Choice:
    by_layer = False
    if scores is None and text is not None and config.calibrates:
        by_layer = runs_by_layer(mixture.checkpoint, low_memory=config.low_memory)
        scores = text_scores(source, mixture, config, text, _partial(target, config), by_layer=by_layer)
    further = further_layers(mixture, config)
    if config.drop is not None:
        kept = kept_by_hand(mixture, config.drop, config.dense, further)
        kept |= chosen_without_text(mixture, config, keep, [layer for layer in further if layer not in kept])
        return _Choice(kept=kept, calibrated=scores, layer_by_layer=by_layer)
    by = CRITERIA[config.criterion]
    values = expert_scores(by, mixture, scores, config.seed)
    guards = config.protect and scores is not None and not by.is_drawn
    protected = scores.super_experts() if guards and scores is not None else {}
    high = by.high_goes_first
    kept = select(mixture, values, keep, high_goes_first=high, protected=protected)
    kept |= chosen_without_text(mixture, config, keep, further)
    named = {layer: tuple(row) for layer, row in values.items()}
    return _Choice(kept=kept, scores=named, protected=protected, calibrated=scores, layer_by_layer=by_layer)


def _partial(target: Path, config: PruneConfig) -> Path:
    """Where an interrupted calibration leaves its sums."""
    if config.scores is not None:
        return config.scores
    target = target.resolve()
    return target.with_name(f".{target.name}.scores.json")


def _write_scores(stage: Path, config: PruneConfig, choice: _Choice) -> None:
    """Put the scores into the output, and where the user wants them."""
    if choice.calibrated is None:
        return
    choice.calibrated.write(stage / SCORES_FILE)
    if config.scores is not None and config.dataset is not None:
        choice.calibrated.write(config.scores)


def _said(losses: HeldOutLoss) -> list[str]:
    if losses.better_than_chance:
        return []
    return [
        f"the criterion does not clearly beat chance on this text: loss {losses.after:.4f} after pruning,"
        f" {losses.random_mean:.4f} +- {losses.random_std:.4f} after dropping experts at random"
    ]


def _report(
    mixture: Mixture, source: Source, target: Path, config: PruneConfig, choice: _Choice, plan: PrunePlan
) -> PruneReport:
    everyone = range(mixture.num_experts)
    return PruneReport(
        source=source.name,
        output=str(target),
        model_type=str(layout_key(plan.config)),
        by="experts" if config.drop is not None else config.criterion,
        num_experts_before=mixture.num_experts,
        num_experts=len(next(iter(choice.kept.values()))),
        top_k=1 if config.dense else mixture.top_k,
        kept=choice.kept,
        dropped={n: tuple(e for e in everyone if e not in k) for n, k in choice.kept.items()},
        scores=choice.scores,
        protected=choice.protected,
        params_before=plan.params_before,
        params_after=plan.params_after,
        bytes_before=sum(path.stat().st_size for path in mixture.checkpoint.shards),
        bytes_written=plan.files.nbytes,
        gate_inflation=_inflation(choice) if not config.dense else {},
        rescaled=config.rescale,
        merged=config.merge,
        further_layers=further_layers(mixture, config),
        tokens=0 if choice.calibrated is None else choice.calibrated.tokens,
        layer_by_layer=choice.layer_by_layer,
        warnings=tuple(said_of_further(mixture, config)),
    )


def _inflation(choice: _Choice) -> dict[int, float]:
    """1 / mean part of the softmax that the kept experts had, in layers where it grows to 1."""
    if choice.calibrated is None:
        return {}
    layers = choice.calibrated.layers
    parts = {n: layers[n].kept_probability(kept) for n, kept in choice.kept.items() if n in layers}
    return {layer: 1 / part for layer, part in parts.items() if 0 < part < 1}


def _step(config: PruneConfig, report: PruneReport, source: Source) -> Step:
    options = config.recorded() | {"by": report.by}
    results = {
        "num_experts_before": report.num_experts_before,
        "num_experts": report.num_experts,
        "params_total": report.params_after,
        **({} if report.held_out is None else {"held_out": asdict(report.held_out)}),
        "kept": {str(layer): list(experts) for layer, experts in report.kept.items()},
        "original_experts": _original(report.kept, Record.read(source)),
        "papers": [
            *(CRITERIA.cited(config.criterion) if config.drop is None else ()),
            *((MERGING,) if config.merge else ()),
        ],
    }
    return Step(command="prune", options=options, results=results)


def _original(kept: dict[int, tuple[int, ...]], record: Record) -> dict[str, list[int]]:
    """The kept experts' numbers before any pruning, through the prunings recorded so far."""
    before: dict[str, Any] = {}
    for step in record.steps:
        found = step.results.get("original_experts")
        before = found if isinstance(found, dict) else before
    original = {}
    for layer, experts in kept.items():
        known = before.get(str(layer))
        if not isinstance(known, list) or len(known) <= max(experts):
            known = list(range(max(experts) + 1))
        original[str(layer)] = [known[e] for e in experts]
    return original
