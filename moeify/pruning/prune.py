"""Experts taken out of a mixture."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source, resolve_source
from moeify.checkpoint.staging import check_output, output_errors, staged
from moeify.checkpoint.writer import Progress, parse_size
from moeify.provenance.record import Record, Step
from moeify.pruning.aimer import aimer_scores
from moeify.pruning.anatomy import Anatomy, dissect, open_moe
from moeify.pruning.config import PruneConfig
from moeify.pruning.dense import plan_dense
from moeify.pruning.plan import PrunePlan, plan_prune
from moeify.pruning.report import PruneReport
from moeify.pruning.selection import (
    HIGH_GOES_FIRST,
    kept_by_hand,
    number_to_keep,
    random_scores,
    select,
)
from moeify.pruning.writing import check_room, write_beside, write_plan

__all__ = ["PruneReport", "prune"]


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Which experts stay, and why."""

    kept: dict[int, tuple[int, ...]]
    scores: dict[int, tuple[float, ...]]


def prune(
    checkpoint: str | Path, output: str | Path | None = None, config: PruneConfig | None = None,
    *, progress: Progress | None = None, **options: Any,
) -> PruneReport:  # fmt: skip
    """Take experts out of every MoE layer of ``checkpoint``.

    Byte ranges are copied, so dtype and quantisation do not matter and memory stays flat. Removing
    a router's rows equals masking their logits with -inf. Raises ``MoeifyError``; nothing is left
    behind then.
    """
    started = time.perf_counter()
    config = PruneConfig(**options) if config is None else replace(config, **options)
    source = resolve_source(checkpoint, config.revision)
    anatomy = dissect(open_moe(Checkpoint.open(source.folder)))
    keep = number_to_keep(anatomy, config)
    target = Path(output) if output is not None else _default_output(source, config, keep)
    check_output(target, source.folder, force=config.force)
    sample = dict.fromkeys(anatomy.view.moe_layers, tuple(range(keep)))
    check_room(source, target, _plan(anatomy, sample, config).nbytes)
    choice = _choose(anatomy, config, keep)
    plan = _plan(anatomy, choice.kept, config)
    report = _report(anatomy, source, target, config, choice, plan)
    with staged(target, force=config.force) as stage, output_errors(target):
        write_plan(stage, plan, source, progress)
        write_beside(stage, plan, source, _step(config, report, source))
    return replace(report, seconds=time.perf_counter() - started)


def _default_output(source: Source, config: PruneConfig, keep: int) -> Path:
    """``NAME-e4-reap`` in the working directory."""
    name = source.name.rsplit("/", 1)[-1]
    how = "by-hand" if config.experts is not None else config.by
    return Path(f"{name}-dense" if config.dense else f"{name}-e{keep}-{how}")


def _plan(anatomy: Anatomy, kept: dict[int, tuple[int, ...]], config: PruneConfig) -> PrunePlan:
    limit = parse_size(config.max_shard_size)
    if config.dense:
        return plan_dense(anatomy, {layer: e[0] for layer, e in kept.items()}, limit)
    return plan_prune(anatomy, kept, limit)


def _choose(anatomy: Anatomy, config: PruneConfig, keep: int) -> _Choice:
    if config.experts is not None:
        kept = kept_by_hand(anatomy, config.experts, config.dense)
        return _Choice(kept=kept, scores={})
    scores = random_scores(anatomy, config.seed) if config.by == "random" else aimer_scores(anatomy)
    kept = select(anatomy, scores, keep, high_goes_first=config.by in HIGH_GOES_FIRST)
    return _Choice(kept=kept, scores={layer: tuple(row) for layer, row in scores.items()})


def _report(
    anatomy: Anatomy, source: Source, target: Path, config: PruneConfig, choice: _Choice,
    plan: PrunePlan,
) -> PruneReport:  # fmt: skip
    view = anatomy.view
    everyone = range(view.num_experts)
    return PruneReport(
        source=source.name,
        output=str(target),
        model_type=str(plan.config["model_type"]),
        by="experts" if config.experts is not None else config.by,
        num_experts_before=view.num_experts,
        num_experts=len(next(iter(choice.kept.values()))),
        top_k=1 if config.dense else view.top_k,
        kept=choice.kept,
        dropped={n: tuple(e for e in everyone if e not in k) for n, k in choice.kept.items()},
        scores=choice.scores,
        params_before=plan.params_before,
        params_after=plan.params_after,
        bytes_before=sum(path.stat().st_size for path in view.checkpoint.shards),
        bytes_written=plan.nbytes,
        warnings=tuple(_warnings(anatomy)),
    )


def _warnings(anatomy: Anatomy) -> list[str]:
    if not anatomy.extra:
        return []
    names = ", ".join(sorted(anatomy.extra)[:2])
    return [
        f"left out {len(anatomy.extra)} tensors of layers for predicting further tokens, which"
        f" hold experts of their own: {names}, ..."
    ]


def _step(config: PruneConfig, report: PruneReport, source: Source) -> Step:
    options = {key: value for key, value in asdict(config).items() if key != "force"}
    results = {
        "num_experts_before": report.num_experts_before,
        "num_experts": report.num_experts,
        "params_total": report.params_after,
        "kept": {str(layer): list(experts) for layer, experts in report.kept.items()},
        "original_experts": _original(report.kept, Record.read(source)),
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
