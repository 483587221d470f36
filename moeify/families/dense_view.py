"""A dense checkpoint's tensors under their canonical names, complete and of the right shape."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.base import Family, Head, resolve_shape

__all__ = ["DenseView", "relative_name", "view_dense"]


@dataclass(frozen=True, kw_only=True)
class DenseView:
    """A dense checkpoint seen through its family.

    ``base`` maps names relative to the base model, ``heads`` full names; both leave out buffers.
    ``unknown`` are tensors that neither the base model nor the head declares: they are carried
    along unchanged. ``parameters`` counts what the class holds, tied tensors once.
    """

    checkpoint: Checkpoint
    family: Family
    head: Head
    base: dict[str, StoredTensor]
    heads: dict[str, StoredTensor]
    unknown: dict[str, StoredTensor]
    parameters: int

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return self.family.dense.num_layers(self.checkpoint.config)

    def ffn(self, layer: int) -> dict[str, StoredTensor]:
        """The FFN tensors of one layer by role."""
        prefix = self.family.dense.layer.format(layer=layer)
        return {part.role: self.base[prefix + part.name] for part in self.family.dense.ffn}


def view_dense(checkpoint: Checkpoint, family: Family) -> DenseView:
    """Sort the tensors of a dense ``checkpoint``.

    Raises ``TensorNotFoundError`` when one is missing and ``CheckpointError`` when a shape
    disagrees with config.json.
    """
    head = family.head(checkpoint.config)
    expected = family.dense.base_tensors(checkpoint.config)
    roots = {name.split(".")[0] for name in expected}
    base: dict[str, StoredTensor] = {}
    heads: dict[str, StoredTensor] = {}
    unknown: dict[str, StoredTensor] = {}
    for stored in checkpoint.tensors.values():
        name = _modern(stored.name, family)
        if name is None:
            continue
        relative = _relative(name, family, head, roots)
        if relative in expected:
            _place(relative, stored, base, checkpoint)
        elif relative is not None:
            _place(head.prefix_out + relative, stored, unknown, checkpoint)
        else:
            _place(name, stored, heads if name in head.tensors else unknown, checkpoint)
    _check_base(base, expected, family, checkpoint)
    _check_head(heads, family, head, checkpoint)
    counted = [t for name, t in base.items() if name not in head.lacks]
    tied = _tied_names(family, head, checkpoint)
    counted += [t for name, t in heads.items() if name not in tied]
    return DenseView(
        checkpoint=checkpoint,
        family=family,
        head=head,
        base=base,
        heads=heads,
        unknown=unknown,
        parameters=sum(t.elements for t in counted),
    )


def relative_name(name: str, view: DenseView) -> str | None:
    """A full tensor name relative to the base model of ``view``; None for one of the head."""
    modern = _modern(name, view.family)
    roots = {known.split(".")[0] for known in view.base}
    return None if modern is None else _relative(modern, view.family, view.head, roots)


def _modern(name: str, family: Family) -> str | None:
    """``name`` as transformers spells it today, or None for a buffer."""
    for old, new in family.dense.aliases.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return None if name.endswith(family.dense.buffers) else name


def _relative(name: str, family: Family, head: Head, roots: set[str]) -> str | None:
    """``name`` without the base model's prefix, or None for a tensor of the head."""
    for prefix in (head.prefix, *family.dense.prefixes, ""):
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.split(".")[0] in roots:
            return rest
    return None


def _place(
    name: str, stored: StoredTensor, into: dict[str, StoredTensor], checkpoint: Checkpoint
) -> None:
    if name in into:
        raise CheckpointError(
            f"tensors {into[name].name!r} and {stored.name!r} are both {name!r}",
            "remove one of them from the checkpoint",
            path=checkpoint.folder,
        )
    into[name] = stored


def _check_base(
    base: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]], family: Family,
    checkpoint: Checkpoint,
) -> None:  # fmt: skip
    layers = family.dense.num_layers(checkpoint.config)
    optional = set(family.dense.optional)
    for layer in range(layers):
        prefix = family.dense.layer.format(layer=layer)
        optional |= {prefix + name for name in family.dense.optional}
    for name, shape in expected.items():
        if name in base:
            _check_shape(base[name], shape)
        elif name not in optional:
            raise TensorNotFoundError(
                name, checkpoint.folder, "the checkpoint is incomplete: download it again"
            )


def _check_head(
    heads: dict[str, StoredTensor], family: Family, head: Head, checkpoint: Checkpoint
) -> None:
    dims = family.dense.dims(checkpoint.config)
    tied = _tied_names(family, head, checkpoint)
    for name, shape in head.tensors.items():
        if name in heads:
            _check_shape(heads[name], resolve_shape(shape, dims))
        elif name not in tied:
            raise TensorNotFoundError(
                name,
                checkpoint.folder,
                f"{family.architecture(checkpoint.config)} needs it: set architectures in"
                " config.json to the class that the checkpoint holds",
            )


def _tied_names(family: Family, head: Head, checkpoint: Checkpoint) -> set[str]:
    tie = checkpoint.config.get("tie_word_embeddings")
    ties = family.dense.ties_by_default if tie is None else bool(tie)
    return set(head.tied) if ties else set()


def _check_shape(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise CheckpointError(
            f"tensor {stored.name!r} has shape {list(stored.shape)}, config.json says"
            f" {list(shape)}",
            "mend config.json, or use the one that belongs to these weights",
            path=stored.path,
        )
