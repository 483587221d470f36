"""Writing warmed-up weights: what changed is written anew, every other file stays the same file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from moeify.checkpoint.carry import carry_files
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor, read_header
from moeify.checkpoint.jobs import Held, Job, copy_of
from moeify.checkpoint.ledger import Ledger
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.rewrite import Rewrite, plan_rewrite, write_rewrite
from moeify.checkpoint.source import Source
from moeify.families.mixture import Mixture
from moeify.provenance.companions import write_companions
from moeify.provenance.record import UNRECORDED, Record, Step, recorded_sums
from moeify.provenance.seal import seal
from moeify.routing.collection import routers
from moeify.warming.config import WarmupConfig

__all__ = ["output_bytes", "write_output"]

_UNRECORDED = (*UNRECORDED, "resume", "plot", "device")


def output_bytes(view: Mixture, config: WarmupConfig, output: Path) -> int:
    """Bytes that writing takes at most, known before anything is trained."""
    stored = view.checkpoint.tensors
    names = [view.router_name(layer) for layer in view.moe_layers]
    scratch = 0
    if config.train != "routers":
        names, scratch = [*stored], sum(4 * tensor.elements for tensor in stored.values())
    jobs = [
        Job(
            name,
            stored[name].dtype,
            stored[name].shape,
            (copy_of(stored[name], stored[name].dtype),),
        )
        for name in names
    ]
    return plan_rewrite(view.checkpoint, jobs, output).bytes_written + scratch


def _router_jobs(view: Mixture, model: Any) -> Iterator[Job]:
    for layer, router in routers(model, view.layout).items():
        stored = view.checkpoint[view.router_name(layer)]
        weight: Any = router.weight
        array = np.ascontiguousarray(weight.detach().float().cpu().numpy())
        piece = Held(array=array, dtype=stored.dtype)
        yield Job(stored.name, stored.dtype, stored.shape, (piece,))


def write_output(
    stage: Path, source: Source, view: Mixture, model: Any, config: WarmupConfig,
    results: dict[str, Any], weights: dict[str, Any],
) -> Rewrite:  # fmt: skip
    """Write weights, companions and record into ``stage``; returns what was written.

    ``weights`` are those that were trained, float32, where more than routers were.
    """
    ledger, recorded = Ledger(config.checksum), recorded_sums(source.folder)
    if weights:
        plan = _write_changed(stage, view.checkpoint, model, weights, ledger, recorded)
    else:
        plan = plan_rewrite(view.checkpoint, _router_jobs(view, model), stage)
        write_rewrite(stage, plan, ledger=ledger, recorded=recorded)
    carry_files(source.folder, stage, ledger)
    options = {k: v for k, v in asdict(config).items() if k not in _UNRECORDED and v is not None}
    step = Step(command="warmup", options=options, results=results)
    record = Record.read(source).with_step(step)
    written = view.checkpoint.config
    write_companions(stage, written, record, source.folder)
    seal(stage, ledger)
    return plan


def _write_changed(
    stage: Path, checkpoint: Checkpoint, model: Any, weights: dict[str, Any], ledger: Ledger,
    recorded: dict[Path, str],
) -> Rewrite:  # fmt: skip
    """Write the ``weights`` that differ from the checkpoint's, under its own names and dtypes.

    What loading joined is undone into a file beside the shards.
    """
    from moeify.warming.stored_form import save_in_stored_form

    with TemporaryDirectory(dir=stage) as scratch:
        file = Path(scratch, "trained.safetensors")
        save_in_stored_form(model, weights, checkpoint.tensors, file)
        trained, _ = read_header(file)
        with SourceFiles() as files:
            jobs = [
                Job(old.name, old.dtype, old.shape, (copy_of(new, old.dtype),))
                for name, new in trained.items()
                if _differ(files, old := checkpoint[name], new)
            ]
        plan = plan_rewrite(checkpoint, jobs, stage)
        write_rewrite(stage, plan, ledger=ledger, recorded=recorded)
    return plan


def _differ(files: SourceFiles, old: StoredTensor, new: StoredTensor) -> bool:
    """Whether ``new``, in the dtype of ``old``, has other bytes."""
    written = bytearray(old.nbytes)
    copy_of(new, old.dtype).fill(files, 0, memoryview(written))
    return files.read(old.path, old.start, old.nbytes) != written
