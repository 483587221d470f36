"""The checkpoints that experts are made of, opened and dealt out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import CONFIG_FILE, Checkpoint, read_config
from moeify.checkpoint.source import Source, resolve_source
from moeify.errors import CheckpointError
from moeify.families.dense_view import DenseView, view_dense
from moeify.families.registry import MOE_LAYOUTS, dense_family
from moeify.upcycling.config import UpcycleConfig

__all__ = ["ExpertOrigin", "ExpertSource", "dealt", "expert_origins", "open_sources"]


@dataclass(frozen=True, kw_only=True)
class ExpertSource:
    """A checkpoint that experts are made of. ``label`` says what it knows."""

    source: Source
    label: str
    view: DenseView

    def ffn(self, layer: int) -> dict[str, StoredTensor]:
        """The FFN tensors of one layer by role."""
        return self.view.ffn(layer)


@dataclass(frozen=True, kw_only=True)
class ExpertOrigin:
    """Which experts an entry of ``experts_from`` became, as reports and moeify.json say it."""

    name: str
    revision: str | None
    label: str
    experts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def open_sources(base: DenseView, config: UpcycleConfig) -> tuple[ExpertSource, ...]:
    """The entries of ``experts_from`` in their order, each folder opened once.

    Raises ``MoeifyError`` for an entry that cannot be opened or is a mixture itself.
    """
    opened: dict[str, tuple[Source, DenseView]] = {}
    for text in config.experts_from:
        if text not in opened:
            source = resolve_source(text)
            opened[text] = source, _view(source)
    labels = config.labels or tuple(_base_name(opened[text][0]) for text in config.experts_from)
    return tuple(
        ExpertSource(source=opened[text][0], label=label, view=opened[text][1])
        for text, label in zip(config.experts_from, labels, strict=True)
    )


def _base_name(source: Source) -> str:
    return source.name.rsplit("/", 1)[-1]


def _view(source: Source) -> DenseView:
    model_type = read_config(source.folder).get("model_type")
    if model_type in MOE_LAYOUTS:
        raise CheckpointError(
            f"{source.name}, a source of experts, is a mixture of experts itself ({model_type})",
            f"take one of its experts out first: moeify extract {source.name} OUT --expert 0",
            path=source.folder / CONFIG_FILE,
        )
    checkpoint = Checkpoint.open(source.folder)
    return view_dense(checkpoint, dense_family(checkpoint.config))


def expert_origins(sources: tuple[ExpertSource, ...], num_experts: int) -> tuple[ExpertOrigin, ...]:
    """Each entry with the experts that ``dealt`` gives it."""
    return tuple(
        ExpertOrigin(
            name=entry.source.name,
            revision=entry.source.revision,
            label=entry.label,
            experts=tuple(range(number, num_experts, len(sources))),
        )
        for number, entry in enumerate(sources)
    )


def dealt(
    sources: tuple[ExpertSource, ...], num_experts: int
) -> Iterator[tuple[int, ExpertSource, bool]]:
    """Each expert's number and source, in turn, and whether an earlier expert has the same."""
    seen = set()
    for expert in range(num_experts):
        entry = sources[expert % len(sources)]
        yield expert, entry, entry.source.folder in seen
        seen.add(entry.source.folder)
