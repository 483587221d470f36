"""A dense checkpoint's tensors under their canonical names, complete and of the right shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.base import DenseLayout, Head
from moeify.families.dense_tensors import DenseTensors, modern_name, sort_dense

__all__ = ["DenseView", "relative_name", "view_dense"]


@dataclass(frozen=True, kw_only=True)
class DenseView:
    """A dense checkpoint seen through its layout.

    ``base`` maps names relative to the base model, ``heads`` full names; both leave out buffers.
    ``unknown`` are tensors that neither the base model nor the head declares: they are carried
    along unchanged. ``parameters`` counts what the class holds, tied tensors once. ``notes`` say
    what a reader of the files would not expect; the checkpoint's config has its usual keys.
    """

    checkpoint: Checkpoint
    layout: DenseLayout
    head: Head
    base: dict[str, StoredTensor]
    heads: dict[str, StoredTensor]
    unknown: dict[str, StoredTensor]
    parameters: int
    notes: tuple[str, ...]
    relative: Callable[[str], str | None]

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return self.layout.num_layers(self.checkpoint.config)

    def ffn(self, layer: int) -> dict[str, StoredTensor]:
        """The FFN tensors of one layer by role."""
        prefix = self.layout.layer.format(layer=layer)
        return {part.role: self.base[prefix + part.name] for part in self.layout.ffn}


def view_dense(checkpoint: Checkpoint, layout: DenseLayout, *, headless: bool = False) -> DenseView:
    """Sort the tensors of a dense ``checkpoint``; ``headless`` lets its head be missing.

    Raises ``TensorNotFoundError`` when one is missing and ``CheckpointError`` when a shape
    disagrees with config.json, or weights are quantised.
    """
    found = sort_dense(checkpoint.tensors, checkpoint.config, layout)
    _check(found, checkpoint, headless)
    held = found.base | found.heads | found.filled
    return DenseView(
        checkpoint=replace(checkpoint, config=found.config),
        layout=layout,
        head=found.head,
        base={name: stored for name, stored in held.items() if name in found.expected},
        heads={name: stored for name, stored in held.items() if name in found.head.tensors},
        unknown=found.unknown,
        parameters=sum(t.elements for name, t in held.items() if found.is_parameter(name)),
        notes=tuple(found.notes),
        relative=found.relative,
    )


def relative_name(name: str, view: DenseView) -> str | None:
    """A full tensor name relative to the base model of ``view``; None for one of the head."""
    modern = modern_name(name, view.layout)
    return None if modern.endswith(view.layout.buffers) else view.relative(modern)


def _check(found: DenseTensors, checkpoint: Checkpoint, headless: bool) -> None:
    if found.quantised is not None:
        raise CheckpointError(
            f"{checkpoint.folder.name} is quantised ({found.quantised})",
            "upcycle the unquantised checkpoint",
            path=checkpoint.folder,
        )
    for name, first, second in found.twice:
        raise CheckpointError(
            f"tensors {first.name!r} and {second.name!r} are both {name!r}",
            "remove one of them from the checkpoint",
            path=checkpoint.folder,
        )
    for name in found.missing:
        if name in found.expected:
            raise TensorNotFoundError(
                name, checkpoint.folder, "the checkpoint is incomplete: download it again"
            )
        if not headless:
            raise TensorNotFoundError(
                name,
                checkpoint.folder,
                f"{found.layout.architecture(found.config)} needs it: set architectures in"
                " config.json to the class that the checkpoint holds",
            )
    held = found.base | found.heads
    for name, shape in found.shapes.items():
        if name in held:
            _check_shape(held[name], shape)


def _check_shape(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise CheckpointError(
            f"tensor {stored.name!r} has shape {list(stored.shape)}, config.json says"
            f" {list(shape)}",
            "mend config.json, or use the one that belongs to these weights",
            path=stored.path,
        )
