"""One warm-up from its options to a loaded model: what its stages hand on to each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source, resolve_source
from moeify.errors import CheckpointError, DatasetError
from moeify.families.mixture import Mixture, open_mixture
from moeify.families.registry import known_layout, moe_layout, vocabulary_size
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import Record
from moeify.routing.data import Blocks, block_length, blocks_for, check_vocabulary
from moeify.routing.examples import Examples
from moeify.routing.held_out import BlockLosses, Hidden, Reading, hidden_states, read_held_out
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.routing.passes import LayerByLayer, Passes, WholeModel, passes_over, runs_by_layer, walk_by_layer
from moeify.routing.running import device_for
from moeify.routing.statistics import RoutingStatistics
from moeify.warming.config import Loss, WarmupConfig
from moeify.warming.feasibility import check_names, check_trainable
from moeify.warming.fitting import expert_owners, fit_method
from moeify.warming.objective import Objective, choose_loss
from moeify.warming.output import check_new
from moeify.warming.run import is_main_process, world_size
from moeify.warming.sharding import check_sharding

_ON_CPU = "ran layer by layer on the CPU, not on {}: pass --no-low-memory to load all weights"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A mixture on the held-out text: losses by block and by domain, and how it routes."""

    losses: BlockLosses
    domains: dict[str, BlockLosses]
    statistics: RoutingStatistics

    @property
    def loss(self) -> float:
        """The loss for a label of the whole text."""
        return self.losses.mean()


@dataclass(kw_only=True)
class Session:
    """What the stages of one warm-up hand on to each other."""

    config: WarmupConfig
    source: Source
    view: Mixture
    loss: Loss
    fit: str
    owners: list[int] | None
    train_blocks: Blocks
    held_out: Blocks
    data_fingerprint: str
    tokenizer: Any
    device: Any
    by_layer: bool = False
    model: Any = None
    routers: dict[int, Any] = field(default_factory=dict)
    objective: Objective | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    _goals: Hidden | None = None

    def measured(self, *, routing: bool = True) -> Measured:
        """The mixture on the held-out text, in one pass; without ``routing`` its losses alone."""
        domains = self.held_out.domain_names
        statistics = RoutingStatistics(len(domains))
        (losses,) = self.read(Reading(observe=statistics if routing else None))
        rows = {name: np.flatnonzero(self.held_out.domains == n) for n, name in enumerate(domains)}
        return Measured(
            losses=losses,
            domains={name: losses.at(found) for name, found in rows.items() if len(found)},
            statistics=statistics,
        )

    def read(self, *readings: Reading) -> list[BlockLosses]:
        """The mixture's losses on the held-out text in each of ``readings``, in one walk."""
        examples, goals = self.examples(self.held_out), None
        if self.loss == "distill" and self.config.reference is not None:
            if self._goals is None:
                with self._dense_passes() as passes:
                    self._goals = hidden_states(passes, examples, self.config.batch)
            goals = self._goals
        with self._passes() as passes:
            return read_held_out(
                passes, self.view.layout, examples, readings, batch_size=self.config.batch, goals=goals
            )

    def dense_losses(self) -> BlockLosses | None:
        """The losses of the dense model, where one is given and it is no teacher."""
        if self.config.reference is None or self.loss == "distill":
            return None
        examples, batch = self.examples(self.held_out), self.config.batch
        with self._dense_passes() as passes:
            (losses,) = read_held_out(passes, None, examples, [Reading()], batch_size=batch)
        return losses

    @contextmanager
    def _passes(self) -> Iterator[Passes]:
        head = self.loss != "distill"
        if not self.by_layer:
            yield WholeModel(self.model, head=head)
            return
        with walk_by_layer(
            self.view.checkpoint, self.view.layout, head=head, dtype=self.config.dtype, prepare=self._set_routers
        ) as passes:
            yield passes

    @contextmanager
    def _dense_passes(self) -> Iterator[Passes]:
        """Passes of the dense model, which is loaded with the mixture unless layers are."""
        head, objective = self.loss != "distill", self.objective
        if objective is not None and objective.teacher is not None:
            yield WholeModel(objective.teacher, head=head)
            return
        dense = Checkpoint.open(resolve_source(str(self.config.reference)).folder)
        layout = known_layout(dense.config)
        if layout is None:
            yield WholeModel(load_model(dense.folder, self.config.dtype), head=head)
            return
        with passes_over(
            dense, layout, low_memory=self.config.low_memory, head=head, dtype=self.config.dtype
        ) as passes:
            yield passes

    @contextmanager
    def layers(self) -> Iterator[LayerByLayer]:
        """The mixture layer by layer, for the fit."""
        if not self.by_layer:
            yield LayerByLayer(self.model, self.view.layout)
            return
        with walk_by_layer(self.view.checkpoint, self.view.layout, dtype=self.config.dtype) as passes:
            yield passes

    def _set_routers(self, model: Any) -> None:
        """Give layers that were loaded the routers that they were fitted."""
        for number, layer in LoadedMixture(model, self.view.layout).layers.items():
            if layer.is_here and number in self.routers:
                for held, fitted in zip(layer.router_tensors, self.routers[number], strict=True):
                    if held is not None:
                        held.data.copy_(fitted)

    def examples(self, blocks: Blocks) -> Examples:
        """``blocks`` with labels for the loss."""
        known = vocabulary_size(self.view.checkpoint.config)
        return Examples(blocks, self.loss, self.tokenizer, self.config.seed, known)

    def load(self) -> None:
        """Load the mixture, and the dense model where one is given, if they fit into memory."""
        config, teacher = self.config, None
        if self.by_layer:
            return
        self.load_mixture()
        if config.reference is not None:
            teacher = load_model(resolve_source(config.reference).folder, config.dtype).to(self.device)
        self.objective = Objective(loss=self.loss, layout=self.view.layout, teacher=teacher)

    def load_mixture(self) -> None:
        """Load the mixture as it lies on disk."""
        self.model = load_model(self.source.folder, self.config.dtype).to(self.device)
        if self.config.steps:
            from moeify.warming.train import route_in_float32

            route_in_float32(self.model, self.view.layout)
            check_names(self.view, self.model, self.config)


def open_session(new: NewCheckpoint, config: WarmupConfig) -> Session:
    """Everything that can be known and checked before the model is loaded, the output first.

    Raises ``CheckpointError``, ``ConfigError`` and ``DatasetError``; for what is no mixture
    ``UnsupportedModelError``.
    """
    source, device = new.source, device_for(config.device)
    opened = Checkpoint.open(source.folder)
    check_sharding(moe_layout(opened.config).unsharded)
    view = open_mixture(opened)
    for layer in view.moe_layers:
        if view.router(layer) is None:
            raise CheckpointError(f"layer {layer} has no router", f"run moeify attach {source.name} first")
    check_trainable(view, config)
    if is_main_process():
        check_new(new, view, config)
    named = opened.config.get("architectures") or [""]
    loss = choose_loss(str(named[0]), config.loss, config.steps)
    record = Record.read(source)
    fit = fit_method(config, record)
    seq_len = block_length(opened.config, config.seq_len)
    blocks, tokenizer = blocks_for(opened, config, _tokens_needed(config, seq_len))
    references = [] if config.reference is None else [config.reference]
    beside = [Checkpoint.open(resolve_source(name).folder) for name in references]
    for dense in beside:
        check_vocabulary(tokenizer, blocks.largest_token, vocabulary_size(dense.config))
    _check_domains(blocks, config, view.num_experts // view.slices)
    train, held_out = blocks.split(config.held_out)
    by_layer = not config.steps and runs_by_layer(opened, *beside, low_memory=config.low_memory, dtype=config.dtype)
    elsewhere = [_ON_CPU.format(device.type)] if by_layer and device.type != "cpu" else []
    return Session(
        config=config,
        source=source,
        view=view,
        device=device,
        by_layer=by_layer,
        loss=loss,
        fit=fit,
        tokenizer=tokenizer,
        owners=expert_owners(record, blocks, view.numbering),
        train_blocks=train,
        held_out=some_blocks(held_out, config.eval_tokens, config.seed),
        data_fingerprint=blocks.fingerprint,
        notes=[*elsewhere, *blocks.notes, *opened.notes, *new.along.notes],
    )


def _tokens_needed(config: WarmupConfig, seq_len: int) -> int:
    per_step = config.batch * config.accumulate * seq_len * world_size()
    used = max(config.fit_tokens, config.steps * per_step)
    return int(max(used / (1 - config.held_out), config.eval_tokens / config.held_out))


def _check_domains(blocks: Blocks, config: WarmupConfig, num_experts: int) -> None:
    if config.domain_column is None:
        return
    count = len(blocks.domain_names)
    if count < 2:
        raise DatasetError(
            f"column {config.domain_column!r} has one value, {blocks.domain_names[0]!r}",
            "name a column with two or more domains, or leave --domain-column out",
        )
    if count > num_experts:
        raise DatasetError(
            f"column {config.domain_column!r} names {count} domains for {num_experts} experts",
            "merge domains, or leave --domain-column out",
        )


def some_blocks(blocks: Blocks, tokens: int, seed: int) -> Blocks:
    """Blocks drawn without replacement, up to ``tokens``, as many of each domain as it has."""
    count = max(1, min(len(blocks), round(tokens / blocks.seq_len)))
    order = np.random.default_rng(seed).permutation(len(blocks))
    if blocks.domains is not None:
        order = order[np.argsort(blocks.domains[order], kind="stable")]
    places = np.linspace(0, len(blocks) - 1, count).round().astype(int)
    return blocks.take(np.sort(order[places]))
