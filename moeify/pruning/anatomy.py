"""Which tensors of a mixture count experts, and along which axis."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moeify.checkpoint.arithmetic import FLOAT_DTYPES
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, TensorNotFoundError, UnsupportedModelError
from moeify.families.moe_layout import MoeLayout
from moeify.families.moe_view import MoeView, view_moe
from moeify.families.quantization import split_quantized
from moeify.families.registry import FAMILIES, MOE_LAYOUTS, moe_layout

__all__ = ["Anatomy", "Part", "dissect", "open_moe"]

_NUMBER = re.compile(r"(\d+)(.*)", re.DOTALL)
_HASH_TENSORS = (".tid2eid",)
_HASH_KEYS = ("num_hash_layers",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How a tensor belongs to the experts of ``layer``.

    A ``single`` tensor belongs to ``expert`` alone and its name is ``before``, the expert's number
    and ``after``; the others count all experts along ``axis``.
    """

    layer: int
    kind: Literal["router", "single", "fused"]
    axis: int = 0
    expert: int = 0
    before: str = ""
    after: str = ""

    def renumbered(self, expert: int) -> str:
        """Name of a single tensor under another number."""
        return f"{self.before}{expert}{self.after}"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A mixture's tensors: those that count experts, and those that no class of it loads.

    ``extra`` are tensors of layers beyond the model's own, for instance for predicting several
    tokens, which hold experts too and cannot stay beside fewer of them. ``guards`` keep dense
    classes from loading the mixture, and are no parameters.
    """

    view: MoeView
    parts: dict[str, Part]
    extra: frozenset[str]
    guards: frozenset[str]

    @property
    def parameters(self) -> int:
        """Parameters as stored, tied ones once."""
        return sum(t.elements for t in self.stored() if t.name not in self.guards)

    @property
    def groups(self) -> tuple[int, int] | None:
        """Groups of experts and how many of them a token keeps; None without groups."""
        return self.view.layout.rule.group_counts(self.view.checkpoint.config)

    @property
    def quantised(self) -> StoredTensor | None:
        """A tensor of experts whose values are no floats; None where there is none."""
        for name, part in self.parts.items():
            stored = self.view.checkpoint.tensors[name]
            beside = (split_quantized(name) or (name, True))[1] is False
            if part.kind != "router" and not beside and stored.dtype not in FLOAT_DTYPES:
                return stored
        return None

    def check_plain(self, what: str, hint: str) -> None:
        """Raise ``CheckpointError`` for quantised experts, of which ``what`` is true."""
        stored = self.quantised
        if stored is not None:
            raise CheckpointError(
                f"tensor {stored.name!r} has dtype {stored.dtype}: {what}", hint, path=stored.path
            )

    def stored(self) -> Iterator[StoredTensor]:
        """Every tensor in the order of its bytes on disk, without the extra ones."""
        tensors = self.view.checkpoint.tensors.values()
        place = {path: number for number, path in enumerate(self.view.checkpoint.shards)}
        for tensor in sorted(tensors, key=lambda t: (place[t.path], t.start)):
            if tensor.name not in self.extra:
                yield tensor


def open_moe(checkpoint: Checkpoint) -> MoeView:
    """``checkpoint`` as a mixture; raises ``UnsupportedModelError`` for a dense one."""
    model_type = checkpoint.config.get("model_type")
    if model_type in FAMILIES:
        raise UnsupportedModelError(
            model_type,
            MOE_LAYOUTS,
            "it is a dense checkpoint without experts: run moeify upcycle first",
        )
    layout = moe_layout(checkpoint.config, checkpoint.tensors)
    return view_moe(checkpoint, layout)


def dissect(view: MoeView) -> Anatomy:
    """Sort the tensors of ``view``.

    Raises ``CheckpointError`` where experts are missing or a tensor cannot be cut.
    """
    _refuse_hash_routing(view)
    parts: dict[str, Part] = {}
    for layer in view.moe_layers:
        if not view.router_parts(layer):
            raise TensorNotFoundError(
                view.router_name(layer), view.checkpoint.folder,
                "give it routers first: moeify attach",
            )  # fmt: skip
    layers = {view.layer_prefix(layer): layer for layer in view.moe_layers}
    pattern = re.compile(re.escape(view.prefix) + _layer_pattern(view.layout))
    extra = set()
    for name, stored in view.checkpoint.tensors.items():
        found = pattern.match(name)
        if found is None:
            if name.startswith(view.layout.rest.ignored):
                extra.add(name)
            continue
        if found[0] in layers:
            part = _part(view, layers[found[0]], found[0], stored)
            if part is not None:
                parts[name] = part
        elif int(found[1]) >= view.layout.dims(view.checkpoint.config)["L"]:
            extra.add(name)
    _check_complete(view, parts)
    tensors = view.checkpoint.tensors.values()
    guards = frozenset(stored.name for stored in tensors if view.layout.is_guard(stored))
    return Anatomy(view=view, parts=parts, extra=frozenset(extra), guards=guards)


def _layer_pattern(layout: MoeLayout) -> str:
    before, after = layout.layer.split("{layer}")
    return re.escape(before) + r"(\d+)" + re.escape(after)


def _part(view: MoeView, layer: int, prefix: str, stored: StoredTensor) -> Part | None:
    layout, name = view.layout, stored.name.removeprefix(prefix)
    axis = _router_axis(layout, name)
    if axis is not None:
        if _uncut(stored, view.num_experts, axis):
            return None
        return Part(layer=layer, kind="router", axis=axis)
    for spec in layout.experts:
        if not spec.fused:
            root = spec.name.split("{expert}")[0]
            number = _NUMBER.fullmatch(name.removeprefix(root)) if name.startswith(root) else None
            if number is not None:
                before, after = sys.intern(prefix + root), sys.intern(number[2])  # few differ
                return Part(
                    layer=layer, kind="single", expert=int(number[1]), before=before, after=after
                )
        elif name.startswith(spec.name.removesuffix(".weight")):
            return None if _uncut(stored, view.num_experts, 0) else Part(layer=layer, kind="fused")
    return None


def _router_axis(layout: MoeLayout, name: str) -> int | None:
    """The axis along which a router's tensor counts experts; None for other tensors."""
    if name == layout.rule.selection_bias:
        return layout.rule.selection_bias_axis
    stem = layout.router.removesuffix("weight")
    return 0 if name.startswith(stem) or name == layout.router_bias else None


def _uncut(stored: StoredTensor, num_experts: int, axis: int) -> bool:
    """Whether ``stored`` is one number for all experts; raises where it cannot be cut."""
    if len(stored.shape) > axis and stored.shape[axis] == num_experts:
        return False
    if stored.elements == 1:
        return True
    raise CheckpointError(
        f"tensor {stored.name!r} of shape {list(stored.shape)} does not count {num_experts} experts"
        f" along axis {axis}: it cannot be cut",
        "prune the unquantised checkpoint, or use the config.json that belongs to these weights",
        path=stored.path,
    )


def _check_complete(view: MoeView, parts: dict[str, Part]) -> None:
    """Every expert of every layer must be there, and none beyond."""
    for layer in view.moe_layers:
        mine = [part for part in parts.values() if part.layer == layer]
        if any(part.kind == "fused" for part in mine):
            continue
        found = {part.expert for part in mine if part.kind == "single"}
        if found != set(range(view.num_experts)):
            raise CheckpointError(
                f"layer {layer} holds {len(found)} experts, config.json says {view.num_experts}",
                "the number must be the same in every layer: download the checkpoint again",
                path=view.checkpoint.folder,
            )


def _refuse_hash_routing(view: MoeView) -> None:
    checkpoint = view.checkpoint
    if any(checkpoint.config.get(key) for key in _HASH_KEYS) or any(
        name.endswith(_HASH_TENSORS) for name in checkpoint.tensors
    ):
        raise CheckpointError(
            f"{checkpoint.folder.name} routes by a hash of the token, which names experts by"
            " number: they cannot be taken out",
            "prune a checkpoint whose routers choose by scores",
            path=checkpoint.folder,
        )
