"""The checkpoints that experts are made of, opened and dealt out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from moeify.checkpoint.foreign_code import code_note
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.lowrank import LowRank
from moeify.checkpoint.reader import CONFIG_FILE, Checkpoint, read_config
from moeify.checkpoint.source import Source, resolve_source
from moeify.checkpoint.weight_files import adapter_error, is_adapter
from moeify.errors import CheckpointError
from moeify.families import dense_checkpoint
from moeify.families.dense_checkpoint import Dense
from moeify.families.numbering import Numbering
from moeify.families.registry import dense_layout, known_mixture
from moeify.upcycling.adapters import Adapter, open_adapter
from moeify.upcycling.config import UpcycleConfig


@dataclass(frozen=True, kw_only=True)
class ExpertSource:
    """A checkpoint that experts are made of, or an ``adapter`` on ``view``.

    ``label`` says what it knows.
    """

    source: Source
    label: str
    view: Dense
    adapter: Adapter | None = None

    def tensor(self, name: str) -> StoredTensor:
        """A tensor by its name relative to the base model, or by its full name in a head."""
        if self.adapter is not None and name in self.adapter.replaced:
            return self.adapter.replaced[name]
        return self.view.base[name] if name in self.view.base else self.view.heads[name]

    def changes(self, name: str) -> tuple[LowRank, ...]:
        """What is added to that tensor."""
        found = None if self.adapter is None else self.adapter.changes.get(name)
        return () if found is None else (found,)


@dataclass(frozen=True, kw_only=True)
class ExpertOrigin:
    """Which experts an entry of ``experts_from`` became, as reports and moeify.json say it."""

    name: str
    revision: str | None
    label: str
    experts: tuple[int, ...]
    adapter: bool = False


def open_sources(base: Dense, base_source: Source, config: UpcycleConfig) -> tuple[ExpertSource, ...]:
    """The entries of ``experts_from`` in their order, each folder opened once.

    Raises ``MoeifyError`` for an entry that cannot be opened or is a mixture itself.
    """
    opened: dict[str, ExpertSource] = {}
    for text in config.experts_from:
        if text not in opened:
            opened[text] = _open(resolve_source(text), base, base_source, config)
    labels = config.labels or tuple(opened[text].label for text in config.experts_from)
    return tuple(replace(opened[text], label=label) for text, label in zip(config.experts_from, labels, strict=True))


def _open(source: Source, base: Dense, base_source: Source, config: UpcycleConfig) -> ExpertSource:
    if not is_adapter(source.folder):
        return open_dense(source)
    adapter = open_adapter(source, base, base_source, whole=config.rest == "mean")
    return ExpertSource(source=source, label=source.base_name, view=base, adapter=adapter)


def open_dense(source: Source) -> ExpertSource:
    """A dense checkpoint that experts can be made of, with or without its head.

    Raises ``MoeifyError`` for anything else.
    """
    if is_adapter(source.folder):
        raise adapter_error(source.name)
    mixture = known_mixture(read_config(source.folder))
    if mixture is not None:
        raise CheckpointError(
            f"{source.name}, a source of experts, is a mixture of experts itself ({mixture.model_type})",
            f"take one of its experts out first: moeify extract {source.name} OUT --expert 0",
            path=source.folder / CONFIG_FILE,
        )
    checkpoint = Checkpoint.open(source.folder)
    view = dense_checkpoint.open_dense(checkpoint, dense_layout(checkpoint.config), headless=True)
    return ExpertSource(source=source, label=source.base_name, view=view)


def of_sources(sources: Iterable[ExpertSource]) -> Iterator[str]:
    """What a user should know of how the checkpoints were read, each once."""
    folders = {entry.source.folder: entry for entry in sources if entry.adapter is None}
    for folder, entry in folders.items():
        for note in (*entry.view.checkpoint.notes, *code_note(folder)):
            yield f"{entry.source.name}: {note}"


def expert_origins(sources: tuple[ExpertSource, ...], numbering: Numbering) -> tuple[ExpertOrigin, ...]:
    """Each entry with the experts that it becomes where entries are dealt to copies in turn, in every slice alike."""
    everyone = range(numbering.num_experts)
    return tuple(
        ExpertOrigin(
            name=entry.source.name,
            revision=entry.source.revision,
            label=entry.label,
            experts=tuple(n for n in everyone if numbering.place(n)[1] % len(sources) == number),
            adapter=entry.adapter is not None,
        )
        for number, entry in enumerate(sources)
    )
