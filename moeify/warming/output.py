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
from moeify.tables import Citation
from moeify.warming.balances import BALANCES
from moeify.warming.config import WarmupConfig
from moeify.warming.fits import FITS

if TYPE_CHECKING:
    from torch import Tensor

    from moeify.warming.session import Session

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
    names = [part.name for layer in view.moe_layers for part in _stored(view, layer) if part]
    scratch = 0
    if config.train != "routers":
        names, scratch = [*stored], sum(4 * tensor.elements for tensor in stored.values())
    jobs = [
        Job(name, stored[name].dtype, stored[name].shape, (copy_of(stored[name], stored[name].dtype),))
        for name in names
    ]
    files = plan_rewrite(view.checkpoint, jobs, new.target)
    new.check(files, view.checkpoint.config, more_bytes=scratch)


def router_tensors(session: Session) -> Iterator[tuple[StoredTensor, Tensor]]:
    """What the files hold of each router and what it has become: its weight and its biases.

    A bias that is added for choosing is not trained: where no fit set it to zero and no balance moved it, it stays.
    """
    view, routers = session.view, session.routers
    moved = session.config.steps > 0 and BALANCES[session.config.balance].shifts_bias
    if not session.by_layer:
        layers = LoadedMixture(session.model, view.layout).layers
        routers = {number: layer.router_tensors for number, layer in layers.items()}
    for number, (weight, bias, choosing, nulls) in routers.items():
        kept = None if choosing is None or (choosing.any() and not moved) else choosing
        for stored, tensor in zip(_stored(view, number), (weight, bias, kept, nulls), strict=True):
            if stored is not None and tensor is not None:
                yield stored, tensor


def _stored(view: Mixture, layer: int) -> list[StoredTensor | None]:
    """A router's weight, its bias, the bias for choosing, and the rows of null experts, where there are any."""
    layout, prefix = view.layout, view.layer_prefix(layer)
    names = (layout.router, layout.router_bias, layout.rule.selection_bias, layout.null_router)
    return [view.checkpoint.tensors.get(f"{prefix}{name}") for name in names]


def _router_jobs(session: Session) -> Iterator[Job]:
    for stored, tensor in router_tensors(session):
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        piece = Literal(encode(array, stored.dtype))
        yield Job(stored.name, stored.dtype, stored.shape, (piece,))


def write_output(new: NewCheckpoint, session: Session, results: dict[str, Any]) -> PlannedFiles:
    """Write weights, companions and record of ``new``; returns what was written."""
    config, view = session.config, session.view
    with new.opened() as stage:
        with TemporaryDirectory(dir=stage) as scratch:
            jobs: Iterable[Job] = _router_jobs(session)
            if session.weights:
                trained = Path(scratch, "trained.safetensors")
                written = _changed(view.checkpoint, session.model, session.weights, trained)
                names = {job.name for job in written}
                jobs = [*written, *(job for job in jobs if job.name not in names)]
            plan = plan_rewrite(view.checkpoint, jobs, stage)
            new.write(plan)
        options = config.recorded().items()
        kept = {k: v for k, v in options if k not in _UNRECORDED and v is not None}
        step = Step(command="warmup", options=kept, results=results | {"papers": _papers(config, session.fit)})
        new.finish(view.checkpoint.config, step)
    return plan


def _papers(config: WarmupConfig, fit: str) -> list[Citation]:
    trained = BALANCES.cited(config.balance) if config.steps else []
    z_loss = [_Z_LOSS] if config.steps and config.z_coef else []
    return [*FITS.cited(fit), *trained, *z_loss, _MAX_VIO]


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
