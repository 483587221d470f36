"""An MoE checkpoint's routers and the norms before them, found by its layout."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.base import ExpertTensor, MoeLayout

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

    def router(self, layer: int) -> StoredTensor | None:
        """One layer's router weight, None where it is missing; raises on a wrong shape."""
        stored = self.checkpoint.tensors.get(self.router_name(layer))
        expected = (self.num_experts, self.hidden_size)
        if stored is not None and stored.shape != expected:
            raise CheckpointError(
                f"router {stored.name!r} has shape {list(stored.shape)}, config.json says"
                f" {list(expected)}",
                "mend config.json, or use the one that belongs to these weights",
                path=stored.path,
            )
        return stored

    def norm(self, layer: int) -> StoredTensor:
        """Weight [H] of the normalisation whose output the router reads."""
        return self.checkpoint[self.layer_prefix(layer) + self.layout.norm]

    def norm_bias(self, layer: int) -> StoredTensor | None:
        """Bias [H] of that normalisation, where the family has one."""
        if self.layout.norm_bias is None:
            return None
        return self.checkpoint[self.layer_prefix(layer) + self.layout.norm_bias]

    def up(self, layer: int) -> tuple[StoredTensor, ExpertTensor]:
        """The tensor that holds expert 0's up-projection, and its description."""
        spec = next(part for part in self.layout.experts if "up" in part.roles)
        return self.checkpoint[self.layer_prefix(layer) + spec.name.format(expert=0)], spec


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
