"""What a dense checkpoint holds, and what upcycling would make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from moeify.checkpoint.header import StoredTensor
from moeify.errors import MoeifyError
from moeify.families.base import Config, Family, Head, MoeSettings, resolve_shape
from moeify.families.moe_anatomy import PartSize, check_layers
from moeify.inspection.checks import unknown_tensors
from moeify.inspection.problems import Problem, grouped

__all__ = ["DenseAnatomy", "Outlook", "dissect_dense"]

_EXPERTS, _TOP_K = 8, 2  # the defaults of upcycle
_ATTENTION = ("attn", "self_attn", "attention", "crossattention")
_EMBEDDINGS = ("embed_tokens", "embeddings", "wte", "wpe")


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What ``moeify upcycle`` would make of a dense checkpoint with its default options.

    ``ffn`` describes the FFN tensors by role: name in a layer and shape.
    """

    model_type: str
    num_experts: int
    top_k: int
    params_total: int
    params_active: int
    nbytes: int
    ffn: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        return asdict(self)


@dataclass(kw_only=True)
class DenseAnatomy:
    """The parts of a dense checkpoint, its problems and its outlook."""

    num_layers: int
    parts: dict[str, PartSize]
    problems: list[Problem]
    outlook: Outlook | None

    @property
    def parameters(self) -> int:
        """What the class holds, tied tensors once."""
        return sum(part.parameters for part in self.parts.values())


def dissect_dense(tensors: dict[str, StoredTensor], config: Config, family: Family) -> DenseAnatomy:
    """Sort the tensors of a dense checkpoint; raises ``MoeifyError`` for an unusable config."""
    head = family.head(config)
    check_layers(family.dense.num_layers(config), len(tensors))
    sorter = _Sorter(tensors, config, family, head)
    problems = list(sorter.problems())
    outlook = None
    if not problems:
        outlook = _outlook(sorter, config, family)
    return DenseAnatomy(
        num_layers=sorter.dims["L"], parts=sorter.parts, problems=problems, outlook=outlook
    )


class _Sorter:
    def __init__(
        self, tensors: dict[str, StoredTensor], config: Config, family: Family, head: Head
    ) -> None:
        self.family, self.head = family, head
        dense = family.dense
        self.dims = dense.dims(config)
        self.expected = dense.base_tensors(config)
        self.roots = {name.split(".")[0] for name in self.expected}
        self.base: dict[str, StoredTensor] = {}
        self.heads: dict[str, StoredTensor] = {}
        self.unknown: list[str] = []
        self.parts: dict[str, PartSize] = {}
        tie = config.get("tie_word_embeddings")
        ties = dense.ties_by_default if tie is None else bool(tie)
        self.tied = {name for name in head.tied if ties or name.endswith(".bias")}
        self.ffn = {part.name for part in dense.ffn}
        self.layer_root = dense.layer.split("{")[0]
        for stored in tensors.values():
            self._place(stored)

    def _place(self, stored: StoredTensor) -> None:
        name = stored.name
        for old, new in self.family.dense.aliases.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        counted = True
        relative = self._relative(name)
        if name.endswith(self.family.dense.buffers):
            part, counted = "buffers", False
        elif relative is not None and relative in self.expected:
            self.base[relative] = stored
            part = self._part(relative)
            counted = relative not in self.head.lacks
        elif name in self.head.tensors:
            self.heads[name] = stored
            part, counted = "heads", name not in self.tied
        else:
            self.unknown.append(stored.name)
            part, counted = "unknown", False
        size = self.parts.setdefault(part, PartSize())
        size.nbytes += stored.nbytes
        size.parameters += stored.elements if counted else 0

    def _relative(self, name: str) -> str | None:
        for prefix in (self.head.prefix, *self.family.dense.prefixes, ""):
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest.split(".")[0] in self.roots:
                return rest
        return None

    def _part(self, relative: str) -> str:
        if relative.startswith(self.layer_root):
            inner = relative.removeprefix(self.layer_root).partition(".")[2]
            if inner in self.ffn:
                return "dense_ffn"
            return "attention" if inner.split(".")[0] in _ATTENTION else "norms"
        root = relative.split(".")[0]
        return "embeddings" if root in _EMBEDDINGS else "heads" if root == "pooler" else "norms"

    def problems(self) -> Iterator[Problem]:
        """Missing tensors, wrong shapes and tensors that the class does not load."""
        optional = self.family.dense.optional
        missing = [name for name in self.expected if name not in self.base and not any(
            name == other or name.endswith("." + other) for other in optional)]  # fmt: skip
        missing += [n for n in self.head.tensors if n not in self.heads and n not in self.tied]
        yield from _by_pattern("missing_tensor", missing, "missing")
        wanted = self.expected | {
            name: resolve_shape(shape, self.dims) for name, shape in self.head.tensors.items()
        }
        wrong = [name for name, stored in (self.base | self.heads).items()
                 if stored.shape != wanted[name]]  # fmt: skip
        yield from _by_pattern("shape", wrong, "of another shape than config.json says")
        yield from unknown_tensors(self.unknown, self.family.model_type)


def _by_pattern(kind: str, names: list[str], what: str) -> Iterator[Problem]:
    for pattern, count in grouped(names).items():
        listing = f"{count} tensors {pattern}" if count > 1 else pattern
        yield Problem(kind=kind, message=f"{listing} {'are' if count > 1 else 'is'} {what}")


def _outlook(sorter: _Sorter, config: Config, family: Family) -> Outlook:
    dims, layers = sorter.dims, sorter.dims["L"]
    settings = MoeSettings(
        num_experts=_EXPERTS, top_k=_TOP_K, moe_layers=tuple(range(layers)), num_layers=layers
    )
    prefix = family.dense.layer.format(layer=0)
    ffn = {part.role: sorter.base[prefix + part.name] for part in family.dense.ffn}
    elements = sum(stored.elements for stored in ffn.values())
    nbytes = sum(stored.nbytes for stored in ffn.values())
    moe_dims = dims
    with suppress(MoeifyError):  # upcycle refuses such a config, and says why
        moe_dims = family.moe.dims(family.to_moe_config(config, settings))
    added = _EXPERTS * dims["H"] + sum(
        math.prod(resolve_shape(extra.shape, moe_dims)) for extra in family.moe.extras
    )
    dense = sum(part.parameters for part in sorter.parts.values())
    stored_bytes = sum(part.nbytes for name, part in sorter.parts.items() if name != "buffers")
    return Outlook(
        model_type=family.moe.model_type,
        num_experts=_EXPERTS,
        top_k=_TOP_K,
        params_total=dense + layers * ((_EXPERTS - 1) * elements + added),
        params_active=dense + layers * ((_TOP_K - 1) * elements + added),
        nbytes=stored_bytes + layers * ((_EXPERTS - 1) * nbytes + added * nbytes // elements),
        ffn={
            part.role: {"name": part.name, "shape": list(ffn[part.role].shape)}
            for part in family.dense.ffn
        },
    )
