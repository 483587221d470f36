"""Getting the routers of a mixture ready on a dataset: fit, train, measure, write."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.interruption import keeping
from moeify.checkpoint.source import resolve_source
from moeify.errors import TrainingError
from moeify.look import require_matplotlib
from moeify.progress import stage
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.routing.collection import InputReservoir
from moeify.routing.fitting import fit_in_order
from moeify.routing.loaded import LoadedLayer
from moeify.warming.config import WarmupConfig
from moeify.warming.feasibility import balances, learns_from_task
from moeify.warming.fits import FITS, Seen
from moeify.warming.headroom import expert_difference, measure_headroom
from moeify.warming.output import router_tensors, write_output
from moeify.warming.plot import plot_warmup
from moeify.warming.report import WarmupReport, changes, domain_loss, eval_losses, notes_on
from moeify.warming.reporting import check_reporting
from moeify.warming.run import (
    TRAINED_FILE,
    close_run,
    is_main_process,
    kept_if_resumable,
    last_checkpoint,
    open_run,
    per_step,
    run_folder,
    unsaved,
)
from moeify.warming.session import Session, open_session, some_blocks


def warmup(
    checkpoint: str | Path, output: str | Path | None = None, config: WarmupConfig | None = None, **options: Any
) -> WarmupReport:
    """Fit and train the routers of ``checkpoint`` on text, and write it with them to ``output``.

    Only the routers' file is written anew. In a run of several processes every one returns the
    report, and the first one writes. Raises ``MoeifyError``; nothing is left behind then but the
    checkpoints of a run that can be resumed, and after ``TrainingError`` an output with the last
    good weights.
    """
    started = time.perf_counter()
    config = replace(config, **options) if config is not None else WarmupConfig(**options)
    source = resolve_source(checkpoint, config.revision)
    target = source.output(output, "warm")
    new = NewCheckpoint(source, target, config, written=is_main_process())
    check_reporting(config)
    if config.plot is not None:
        require_matplotlib()
    session = open_session(new, config)
    if config.steps:
        open_run(run_folder(target), config, session.view, session.train_blocks)
    with kept_if_resumable(run_folder(target)):
        session.load()
        report = replace(_measured(session, target), bytes_carried=new.along.nbytes)
    if is_main_process():
        report = _written(session, report, new)
        if config.steps:
            close_run(run_folder(target), done=report.failed is None)
    report = replace(report, seconds=time.perf_counter() - started)
    if report.failed is not None:
        raise TrainingError(
            f"{report.failed}; {target} holds the last good weights",
            f"pass a smaller --learning-rate than {config.learning_rate:g}",
        )
    return report


def _written(session: Session, report: WarmupReport, new: NewCheckpoint) -> WarmupReport:
    """Publish the output, and the plot where one is asked for."""
    config = session.config
    plan = write_output(new, session, report.results())
    report = replace(report, bytes_written=plan.nbytes, files_linked=len(plan.linked), files_copied=len(plan.copied))
    if config.plot is not None:
        plot_warmup(report, config.plot)
    return report


def _measured(session: Session, target: Path) -> WarmupReport:
    """Run the stages and measure before, between and after them."""
    config, view = session.config, session.view
    before = session.measured()
    difference, reservoir_bytes = _fit(session)
    fitted = session.measured(routing=not config.steps) if session.fit != "none" else before
    headroom, random = measure_headroom(session, difference, fitted.losses)
    learns = config.train != "routers" or learns_from_task(view)
    _train(session, target, task=learns and not headroom.experts_identical)
    trained = bool(session.curve)
    after = session.measured() if config.steps else fitted
    losses = eval_losses(
        before=before.losses, fitted=fitted.losses, after=after.losses, random=random, dense=session.dense_losses()
    )
    if trained and not learns_from_task(view):
        even = balances(view, config)
        session.notes.append(_NO_GRADIENT.format("balance alone" if even else "the z-loss alone"))
    session.notes += notes_on(headroom, before, after, random)
    steps = int(session.curve[-1]["step"]) if trained else 0
    return WarmupReport(
        source=session.source.name,
        output=str(target),
        model_type=view.layout.model_type,
        num_experts=view.num_experts,
        top_k=view.top_k,
        fit=session.fit,
        train=config.train,
        loss=session.loss,
        steps=steps,
        tokens=steps * per_step(config, session.held_out),
        data_fingerprint=session.data_fingerprint,
        fit_tokens=0 if session.fit == "none" else min(config.fit_tokens, session.train_blocks.tokens),
        eval_tokens=session.held_out.tokens,
        reservoir_bytes=reservoir_bytes,
        headroom=headroom,
        **losses,
        domain_losses={name: domain_loss(before.domains[name], loss) for name, loss in after.domains.items()},
        **changes(before.statistics, after.statistics, session.held_out.domain_names),
        curve=session.curve,
        bytes_written=0,
        files_linked=0,
        files_copied=0,
        collect_seconds=session.seconds["collect"],
        fit_seconds=session.seconds["fit"],
        train_seconds=session.seconds["train"],
        seconds=0.0,
        notes=session.notes,
        failed=session.failed,
    )


_NO_GRADIENT = (
    "each token visits one expert with weight 1, so that the task gives routers no gradient: they"
    " were trained on {}; fit them to text (--fit kmeans, --fit domains), or let a token"
    " visit two experts (moeify attach --top-k 2)"
)


def _fit(session: Session) -> tuple[float, int]:
    """Fit the routers; returns how much experts differ, and the bytes of a layer's inputs."""
    import torch

    config, started, fitting = session.config, time.perf_counter(), 0.0
    wanted = config.fit_tokens if session.fit != "none" else 2 * config.batch * session.train_blocks.seq_len
    blocks = some_blocks(session.train_blocks, wanted, config.seed)
    differences, held = [], 0

    def fit(layer: LoadedLayer, seen: Sequence[InputReservoir]) -> None:
        nonlocal fitting, held
        begun, held = time.perf_counter(), max(held, seen[0].nbytes)
        differences.append(expert_difference(layer, seen[0].expert_inputs(layer.number)))
        if (rows := FITS[session.fit].rows) is not None:
            parts = _seen(session, layer.number, seen[0])
            layer.set_router(torch.cat([rows(part) for part in parts]).repeat_interleave(layer.tied, dim=0))
        if session.by_layer:
            session.routers[layer.number] = [
                None if tensor is None else tensor.clone() for tensor in layer.router_tensors
            ]
        fitting += time.perf_counter() - begun

    with session.layers() as passes:
        fit_in_order(
            passes,
            session.view.layout,
            max(session.view.moe_layers),
            [blocks],
            fit,
            keep=config.fit_tokens,
            seed=config.seed,
            batch_size=config.batch,
        )
    session.seconds["collect"] = time.perf_counter() - started - fitting
    session.seconds["fit"] = fitting
    return math.sqrt(sum(differences) / len(differences)), held


def _seen(session: Session, layer: int, reservoir: InputReservoir) -> list[Seen]:
    """What the router of each slice of experts saw: the same, with draws of its own."""
    numbering = session.view.numbering
    seen = Seen(
        inputs=reservoir.inputs(layer),
        domains=reservoir.domains(layer),
        num_experts=numbering.copies,
        top_k=session.view.top_k // numbering.slices,
        owners=session.owners,
        entropy=session.config.entropy,
        seed=session.config.seed + layer,
    )
    return [replace(seen, seed=seen.seed + number * session.view.num_layers) for number in range(numbering.routers)]


def _train(session: Session, target: Path, *, task: bool) -> None:
    config, started = session.config, time.perf_counter()
    session.seconds["train"] = 0.0
    if not config.steps:
        return
    from moeify.routing.loaded import LoadedMixture
    from moeify.warming.train import NonFiniteLossError, RouterTrainer, prepare

    assert session.objective is not None
    folder = run_folder(target)
    dtypes = {name: parameter.dtype for name, parameter in session.model.named_parameters()}
    prepare(session.model, session.view.layout, config.train)
    checkpoint = last_checkpoint(folder) if config.resume else None
    with (
        keeping(lambda: unsaved(config)),
        stage("training", config.steps, "steps") as training,
        RouterTrainer(
            session.model,
            session.objective,
            session.examples(session.train_blocks),
            config,
            folder,
            task=task,
            stage=training,
        ) as trainer,
    ):
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            weights = trainer.trained()
        except NonFiniteLossError as failure:
            session.failed = f"the loss became {failure.loss} at step {failure.step}"
            weights = trainer.last_good() or _last_saved(session, folder)
        session.curve, sharded = trainer.losses, trainer.sharded
        biases = {layer: bias.detach().clone() for layer, bias in trainer.biases.items()}
    del trainer
    if sharded:
        # Hooks and modules that are called one by one need a model that is whole.
        session.model = None
        session.load_mixture()
    for name, parameter in session.model.named_parameters():
        parameter.data = weights.get(name, parameter.data).to(parameter.device, dtypes[name])
    layers = LoadedMixture(session.model, session.view.layout).layers
    for loaded in layers.values():
        loaded.tie_rows()  # shards of rows learn by themselves
    for layer, bias in biases.items():
        layers[layer].set_bias(bias)
    if config.train != "routers":
        session.weights = weights
    _round_to_stored(session)
    session.seconds["train"] = time.perf_counter() - started


def _last_saved(session: Session, folder: Path) -> dict[str, Any]:
    """The weights of the last checkpoint of the run, after a loss that was not finite."""
    from safetensors.torch import load_file

    saved = last_checkpoint(folder)
    if saved is None:
        raise TrainingError(
            f"{session.failed}, before the first checkpoint; nothing was written",
            f"pass a smaller --learning-rate than {session.config.learning_rate:g}",
        )
    weights: dict[str, Any] = load_file(saved / TRAINED_FILE)
    return weights


def _round_to_stored(session: Session) -> None:
    """What is measured afterwards are the routers as they will be read from disk."""
    import torch

    names = {"BF16": torch.bfloat16, "F16": torch.float16}
    for stored, tensor in router_tensors(session):
        if stored.dtype in names:
            tensor.data = tensor.data.to(names[stored.dtype]).to(tensor.dtype)
