"""An MoE checkpoint's routers, the norms before them and its experts, found by its layout."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.slices import Slice
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.base import ExpertTensor, MoeLayout
from moeify.families.quantization import stored_under

__all__ = ["MoeView", "view_moe"]


@dataclass(frozen=True, kw_only=True)
class MoeView:
    """An MoE checkpoint seen through its layout; ``prefix`` leads the base model's names."""

    checkpoint: Checkpoint
    layout: MoeLayout
    prefix: str
    num_experts: int
    top_k: int
    hidden_size: int
    moe_layers: tuple[int, ...]

    def layer_prefix(self, layer: int) -> str:
        """What leads the names of one layer's tensors."""
        return self.prefix + self.layout.layer.format(layer=layer)

    def router_name(self, layer: int) -> str:
        """Full name of one layer's router weight [E, H]."""
        return self.layer_prefix(layer) + self.layout.router

    def router_parts(self, layer: int) -> tuple[StoredTensor, ...]:
        """What the files hold of one layer's router weight: several tensors where quantised."""
        return tuple(stored_under(self.checkpoint.tensors, self.router_name(layer)))

    def router(self, layer: int) -> StoredTensor | None:
        """One layer's router weight, None where it is missing.

        Raises ``CheckpointError`` for a quantised one and for a wrong shape.
        """
        parts = self.router_parts(layer)
        if not parts:
            return None
        stored, expected = parts[0], (self.num_experts, self.hidden_size)
        others = [part.name for part in parts if part.name != self.router_name(layer)]
        if others or stored.dtype not in FLOAT_DTYPES:
            how = f"{others[0]!r} holds a part of it" if others else f"its dtype is {stored.dtype}"
            raise CheckpointError(
                f"router {self.router_name(layer)!r} is quantised: {how}",
                "use the unquantised checkpoint, or one whose routers were left as they are",
                path=stored.path,
            )
        if stored.shape != expected:
            raise CheckpointError(
                f"router {stored.name!r} has shape {list(stored.shape)}, config.json says"
                f" {list(expected)}",
                "mend config.json, or use the one that belongs to these weights",
                path=stored.path,
            )
        return stored

    def router_biases(self, layer: int) -> tuple[StoredTensor, ...]:
        """The biases [E] of one layer's router and of its choice, as far as they are stored."""
        names = (self.layout.router_bias, self.layout.rule.selection_bias)
        full = (self.layer_prefix(layer) + name for name in names if name is not None)
        tensors = self.checkpoint.tensors
        return tuple(tensors[name] for name in full if name in tensors)

    def expert(self, layer: int, spec: ExpertTensor, expert: int) -> tuple[Slice, ...]:
        """Where ``spec`` of one expert lies: its values, and what stands beside quantised ones.

        Raises ``TensorNotFoundError``.
        """
        name = self.layer_prefix(layer) + spec.name.format(expert=expert)
        found = tuple(stored_under(self.checkpoint.tensors, name)) or (self.checkpoint[name],)
        return tuple(self._cut(stored, spec, expert) for stored in found)

    def up(self, layer: int) -> tuple[Slice, ExpertTensor]:
        """Where expert 0's up-projection lies, with its gate where the two are interwoven."""
        spec = next(part for part in self.layout.experts if "up" in part.roles)
        whole = self.expert(layer, spec, 0)[0]
        if spec.interleaved or spec.neuron_axis != 0:
            return whole, spec
        size = whole.elements // len(spec.roles)
        return Slice(whole.tensor, whole.start + spec.roles.index("up") * size, size), spec

    def _cut(self, stored: StoredTensor, spec: ExpertTensor, expert: int) -> Slice:
        whole = not spec.fused or stored.elements == 1
        size = stored.elements if whole else stored.elements // self.num_experts
        return Slice(stored, 0 if whole else expert * size, size)

    def norm(self, layer: int) -> StoredTensor:
        """Weight [H] of the normalisation whose output the router reads."""
        return self.checkpoint[self.layer_prefix(layer) + self.layout.norm]

    def norm_bias(self, layer: int) -> StoredTensor | None:
        """Bias [H] of that normalisation, where the family has one."""
        if self.layout.norm_bias is None:
            return None
        return self.checkpoint[self.layer_prefix(layer) + self.layout.norm_bias]


def view_moe(checkpoint: Checkpoint, layout: MoeLayout) -> MoeView:
    """See ``checkpoint`` through ``layout``; raises ``CheckpointError`` where it does not fit."""
    config = checkpoint.config
    layers = layout.moe_layers(config)
    if not layers:
        raise CheckpointError("config.json makes no layer a mixture", path=checkpoint.folder)
    wanted = layout.layer.format(layer=layers[0]) + layout.norm
    for prefix in (*layout.prefixes, ""):
        if prefix + wanted in checkpoint.tensors:
            break
    else:
        raise TensorNotFoundError(
            wanted, checkpoint.folder, "the checkpoint is incomplete: download it again"
        )
    return MoeView(
        checkpoint=checkpoint,
        layout=layout,
        prefix=prefix,
        num_experts=layout.num_experts(config),
        top_k=layout.top_k(config),
        hidden_size=layout.dims(config)["H"],
        moe_layers=layers,
    )
