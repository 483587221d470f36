"""Writing warmed-up weights: what changed is written anew, every other file stays the same file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.checkpoint.arithmetic import encode
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor, read_header
from moeify.checkpoint.jobs import Job, Literal, copy_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.rewrite import plan_rewrite
from moeify.families.mixture import Mixture
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import Step
from moeify.routing.loaded import LoadedMixture
from moeify.tables import Citation, Row
from moeify.warming.balances import BALANCES
from moeify.warming.config import WarmupConfig
from moeify.warming.fits import FITS

if TYPE_CHECKING:
    from moeify.warming.session import Session

__all__ = ["check_new", "write_output"]

_UNRECORDED = ("resume", "plot", "device")
_Z_LOSS = Citation(
    used_for="the router z-loss",
    authors="Zoph et al.",
    title="ST-MoE: Designing Stable and Transferable Sparse Expert Models",
    arxiv="2202.08906",
)
_MAX_VIO = Citation(
    used_for="the measure MaxVio",
    authors="Wang et al.",
    title="Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
    arxiv="2408.15664",
)


def check_new(new: NewCheckpoint, view: Mixture, config: WarmupConfig) -> None:
    """Check the output, as large as it may become, before anything is trained."""
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
    files = plan_rewrite(view.checkpoint, jobs, new.target)
    new.check(files, view.checkpoint.config, more_bytes=scratch)


def _router_jobs(session: Session) -> Iterator[Job]:
    view, routers = session.view, session.routers
    if not session.by_layer:
        layers = LoadedMixture(session.model, view.layout).layers
        routers = {number: layer.router.weight.detach() for number, layer in layers.items()}
    for number, weight in routers.items():
        stored = view.checkpoint[view.router_name(number)]
        array = np.ascontiguousarray(weight.float().cpu().numpy())
        piece = Literal(encode(array, stored.dtype))
        yield Job(stored.name, stored.dtype, stored.shape, (piece,))


def write_output(
    new: NewCheckpoint, session: Session, results: dict[str, Any]
) -> PlannedFiles:  # fmt: skip
    """Write weights, companions and record of ``new``; returns what was written."""
    config, view = session.config, session.view
    with new.opened() as stage:
        with TemporaryDirectory(dir=stage) as scratch:
            jobs: Iterable[Job] = _router_jobs(session)
            if session.weights:
                trained = Path(scratch, "trained.safetensors")
                jobs = _changed(view.checkpoint, session.model, session.weights, trained)
            plan = plan_rewrite(view.checkpoint, jobs, stage)
            new.write(plan)
        options = config.recorded().items()
        kept = {k: v for k, v in options if k not in _UNRECORDED and v is not None}
        step = Step(
            command="warmup", options=kept, results=results | {"papers": _papers(config, results)}
        )
        new.finish(view.checkpoint.config, step)
    return plan


def _papers(config: WarmupConfig, results: dict[str, Any]) -> list[Citation]:
    rows: list[Row] = [FITS[results["fit"]]]
    if config.steps:
        rows.append(BALANCES[config.balance])
    cited = [row.paper for row in rows if row.paper is not None]
    return [*cited, *([_Z_LOSS] if config.steps and config.z_coef else []), _MAX_VIO]


def _changed(checkpoint: Checkpoint, model: Any, weights: dict[str, Any], file: Path) -> list[Job]:
    """The ``weights`` that differ from the checkpoint's, under its own names and dtypes.

    What loading joined is undone into ``file``, which the jobs read.
    """
    from moeify.warming.stored_form import save_in_stored_form

    save_in_stored_form(model, weights, checkpoint.tensors, file)
    trained, _ = read_header(file)
    with SourceFiles() as files:
        return [
            Job(old.name, old.dtype, old.shape, (copy_of(new, old.dtype),))
            for name, new in trained.items()
            if _differ(files, old := checkpoint[name], new)
        ]


def _differ(files: SourceFiles, old: StoredTensor, new: StoredTensor) -> bool:
    """Whether ``new``, in the dtype of ``old``, has other bytes."""
    written = bytearray(old.nbytes)
    copy_of(new, old.dtype).fill(files, 0, memoryview(written))
    return files.read(old.path, old.start, old.nbytes) != written
