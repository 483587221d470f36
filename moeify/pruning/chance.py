"""Pruning compared with dropping as many experts at random."""

from __future__ import annotations

import tempfile
from pathlib import Path

from moeify.checkpoint.carry import carry_files
from moeify.checkpoint.planned_files import write_files
from moeify.checkpoint.source import Source
from moeify.checkpoint.writer import parse_size
from moeify.families.mixture import Mixture
from moeify.progress import stage
from moeify.provenance.companions import write_config
from moeify.pruning.config import PruneConfig
from moeify.pruning.evaluation import held_out_losses, summary
from moeify.pruning.plan import Kept, plan_prune
from moeify.pruning.report import HeldOutLoss
from moeify.pruning.selection import random_scores, select
from moeify.routing.data import Blocks
from moeify.routing.held_out import BlockLosses


def compare_losses(
    mixture: Mixture,
    source: Source,
    pruned: Path,
    keep: int,
    config: PruneConfig,
    blocks: Blocks,
    plainly: Kept | None = None,
) -> HeldOutLoss:
    """Held-out loss of the source, of ``pruned`` and of random prunings (arXiv 2606.10703).

    The random ones are written like any other, one at a time, and deleted again. ``plainly`` are
    the experts to keep without merging, where ``pruned`` was merged.
    """

    def losses_in(folder: Path) -> BlockLosses:
        return held_out_losses(folder, blocks, config, pruned)

    def losses_of(kept: Kept) -> BlockLosses:
        # inside the folder that is being written, which the next run clears after a kill
        with tempfile.TemporaryDirectory(dir=pruned, prefix=".random-") as folder:
            plan = plan_prune(mixture, kept, parse_size(config.max_shard_size), further=False)
            write_files(Path(folder), plan.files)
            carry_files(source.folder, Path(folder))
            write_config(Path(folder), plan.config)
            return losses_in(Path(folder))

    before, after = losses_in(source.folder), losses_in(pruned)
    seeds = range(config.seed + 1, config.seed + 1 + config.random_seeds)
    drawn = []
    with stage("pruning at random", len(seeds), "times") as drawing:
        for seed in seeds:
            drawn.append(losses_of(select(mixture, random_scores(mixture, seed), keep)))
            drawing.advance()
    random = tuple(losses.mean() for losses in drawn)
    mean, std = summary(random)
    old, new = before.estimate(), after.estimate()
    return HeldOutLoss(
        tokens=blocks.tokens,
        before=old.value,
        after=new.value,
        before_error=old.error,
        after_error=new.error,
        change_error=after.above(before).error,
        random=random,
        random_mean=mean,
        random_std=std,
        better_than_chance=all(losses.above(after).above_zero for losses in drawn),
        dropped=None if plainly is None else losses_of(plainly).mean(),
    )
