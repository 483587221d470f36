"""Writing a planned checkpoint and what stands beside its weights."""

from __future__ import annotations

from pathlib import Path

from moeify.checkpoint.carry import Carried, carried, carry_files
from moeify.checkpoint.ledger import Ledger
from moeify.checkpoint.source import Source
from moeify.checkpoint.staging import check_free_space
from moeify.checkpoint.writer import Progress, write_shards
from moeify.provenance.companions import write_companions
from moeify.provenance.record import Record, Step
from moeify.pruning.plan import PrunePlan

__all__ = ["SCORES_FILE", "check_room", "write_beside", "write_plan"]

SCORES_FILE = "scores.json"


_OWN = (SCORES_FILE,)  # those are the source's


def check_room(source: Source, target: Path, nbytes: int) -> Carried:
    """What goes along from ``source``, where there is space for it and ``nbytes`` more."""
    along = carried(source.folder, _OWN)
    check_free_space(target, nbytes + along.nbytes)
    return along


def write_plan(
    stage: Path, plan: PrunePlan, source: Source, ledger: Ledger,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write the weights of ``plan`` into ``stage`` and copy the source's other files."""
    write_shards(stage, plan.shards, progress, ledger=ledger)
    carry_files(source.folder, stage, ledger, leave=_OWN)


def write_beside(stage: Path, plan: PrunePlan, source: Source, step: Step) -> None:
    """Write config, record and card into ``stage``."""
    record = Record.read(source).with_step(step)
    write_companions(stage, plan.config, record, source.folder)
