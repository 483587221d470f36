"""One expert of a mixture, or a mean of several, as a dense checkpoint."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import resolve_source
from moeify.checkpoint.writer import parse_size
from moeify.errors import ConfigError
from moeify.families.keys import layout_key
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import Step
from moeify.pruning.config import ExtractConfig
from moeify.pruning.dense import plan_dense
from moeify.pruning.opening import open_prunable
from moeify.pruning.prune import prune
from moeify.pruning.report import ExtractReport, PruneReport
from moeify.pruning.scores import SCORES_FILE


def extract(
    checkpoint: str | Path, output: str | Path | None = None, config: ExtractConfig | None = None, **options: Any
) -> ExtractReport:
    """Write the dense checkpoint of the original family whose FFNs are one expert's.

    Every tensor is copied as it is; the FFNs of several experts are their weighted mean. With a
    score each layer's best expert is taken, as ``prune`` does with ``dense``. Raises
    ``MoeifyError``; nothing is left behind then.
    """
    started = time.perf_counter()
    config = replace(config or ExtractConfig(), **options)
    if config.scored:
        return _best(prune(checkpoint, output, config.pruning))
    source = resolve_source(checkpoint, config.revision)
    numbers = "-".join(str(expert) for expert, _ in config.mean)
    target = source.output(output, f"expert{numbers}")
    new = NewCheckpoint(source, target, config, leave=(SCORES_FILE,))
    mixture = open_prunable(Checkpoint.open(source.folder))
    count = mixture.numbering.copies
    if (last := max(expert for expert, _ in config.mean)) >= count:
        where = "" if mixture.slices == 1 else " of each slice"
        raise ConfigError(
            f"there is no expert {last}: the experts{where} are 0 to {count - 1}", f"name one of 0 to {count - 1}"
        )
    slices = (mixture.numbering.of_slice(number) for number in range(mixture.slices))
    joined = [[(copies[expert], share) for expert, share in config.mean] for copies in slices]
    plan = plan_dense(mixture, dict.fromkeys(mixture.moe_layers, joined), parse_size(config.max_shard_size))
    new.check(plan.files, plan.config)
    named = {
        "expert": config.numbers,
        "shares": config.shares,
        "revision": config.revision,
        "max_shard_size": config.max_shard_size,
    }
    results = {"params_total": plan.params_after}
    with new.opened():
        new.write(plan.files)
        new.finish(plan.config, Step(command="extract", options=named, results=results))
    return ExtractReport(
        source=source.name,
        output=str(target),
        model_type=str(layout_key(plan.config)),
        expert=config.mean[0][0] if len(config.mean) == 1 else None,
        experts=tuple(expert for expert, _ in config.mean),
        weights=tuple(weight for _, weight in config.mean),
        moe_layers=mixture.moe_layers,
        params=plan.params_after,
        bytes_written=plan.files.nbytes,
        bytes_carried=new.along.nbytes,
        warnings=(*mixture.checkpoint.notes, *new.along.notes),
        seconds=time.perf_counter() - started,
    )


def _best(report: PruneReport) -> ExtractReport:
    """What extraction says of a pruning that left one expert a layer."""
    return ExtractReport(
        source=report.source,
        output=report.output,
        model_type=report.model_type,
        expert=None,
        experts=(),
        weights=(),
        by=report.by,
        chosen={layer: kept[0] for layer, kept in report.kept.items()},
        moe_layers=tuple(report.kept),
        params=report.params_after,
        bytes_written=report.bytes_written,
        bytes_carried=report.bytes_carried,
        warnings=report.warnings,
        seconds=report.seconds,
    )
