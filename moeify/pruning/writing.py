"""Writing a planned checkpoint and what stands beside its weights."""

from __future__ import annotations

from pathlib import Path

from moeify.checkpoint.carry import carried_files, carry_files
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source
from moeify.checkpoint.staging import check_free_space
from moeify.checkpoint.writer import Progress, write_shards
from moeify.families.dense_view import view_dense
from moeify.families.registry import FAMILIES
from moeify.provenance.companions import write_companions
from moeify.provenance.record import Record, Step
from moeify.pruning.plan import PrunePlan

__all__ = ["SCORES_FILE", "check_room", "write_beside", "write_plan"]

SCORES_FILE = "scores.json"


def check_room(source: Source, target: Path, nbytes: int) -> None:
    """Raise where there is too little space, or where a file of the source leads out of it."""
    check_free_space(target, nbytes)
    for _ in carried_files(source.folder):
        pass


def write_plan(
    stage: Path, plan: PrunePlan, source: Source, progress: Progress | None = None
) -> None:
    """Write the weights of ``plan`` into ``stage`` and copy the source's other files."""
    write_shards(stage, plan.shards, progress)
    carry_files(source.folder, stage)
    (stage / SCORES_FILE).unlink(missing_ok=True)  # those of the source, if it was pruned before


def write_beside(stage: Path, plan: PrunePlan, source: Source, step: Step) -> None:
    """Write config, record and card into ``stage``; a dense output is held against its class."""
    record = Record.read(source).with_step(step)
    model_type = str(plan.config.get("model_type"))
    write_companions(stage, plan.config, record, source.folder)
    if model_type in FAMILIES:
        view_dense(Checkpoint.open(stage), FAMILIES[model_type])
