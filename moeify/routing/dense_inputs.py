"""What the feed-forward layers of a dense model read: the inputs of the routers to come."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from moeify.families.base import Family
from moeify.routing.collection import InputReservoir, base_model
from moeify.routing.config import RouteBy
from moeify.routing.data import Blocks
from moeify.routing.running import run_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from moeify.modeling.moe_pooling import SequencePool

__all__ = ["collect_dense_inputs"]


class _SeenEnoughError(Exception):
    """Ends a forward pass after the last layer that is asked for."""


def collect_dense_inputs(
    model: nn.Module, family: Family, layers: Sequence[int], blocks: Blocks,
    reservoir: InputReservoir, *, route_by: RouteBy = "token", batch_size: int = 8,
) -> None:  # fmt: skip
    """Run a dense ``model`` over ``blocks`` and keep the FFN inputs [T, H] of ``layers``.

    A mixture of its copies has the same inputs; where it routes by sequence, the kept inputs are
    the means that its routers read. What follows the last of ``layers`` is not run.
    """
    import torch

    base, device = base_model(model), next(model.parameters()).device
    up = next(part.name for part in family.dense.ffn if part.role == "up").removesuffix(".weight")
    watch = _Watch(reservoir, last=max(layers), pools=_pools(model, family, layers, route_by))
    handles = [
        base.get_submodule(family.dense.layer.format(layer=layer) + up)
        .register_forward_pre_hook(lambda _, args, layer=layer: watch.seen(layer, args[0]))
        for layer in layers
    ]  # fmt: skip
    # An encoder's forward has no use_cache.
    options = {} if family.model_type == "bert" else {"use_cache": False}
    try:
        with torch.no_grad():
            for inputs, part in blocks.batches(batch_size):
                watch.expect(inputs["attention_mask"], part)
                with suppress(_SeenEnoughError):
                    placed = {name: tensor.to(device) for name, tensor in inputs.items()}
                    run_model(base, **placed, **options)
    finally:
        for handle in handles:
            handle.remove()


def _pools(
    model: nn.Module, family: Family, layers: Sequence[int], route_by: RouteBy
) -> dict[int, SequencePool]:
    """What turns each layer's inputs into those of a router that decides for sequences."""
    from moeify.modeling.moe_pooling import SequencePool

    if route_by == "token":
        return {}
    config: Any = model.config
    causal = family.model_type != "bert" or bool(getattr(config, "is_decoder", False))
    total = family.dense.num_layers(config.to_dict())
    return {n: SequencePool(causal=causal, layer=n, num_layers=total) for n in layers}


class _Watch:
    """Passes the real tokens of each batch on to a reservoir."""

    def __init__(
        self, reservoir: InputReservoir, *, last: int, pools: dict[int, SequencePool]
    ) -> None:
        self._reservoir, self._last, self._pools = reservoir, last, pools
        self._batch: dict[str, Tensor] = {}

    def expect(self, mask: Tensor, part: Blocks) -> None:
        """Announce a batch: its attention mask [B, S] and its blocks."""
        import torch

        assert part.domains is not None, "the texts have labels"
        real = mask.flatten().bool()
        per_token = torch.from_numpy(part.domains).repeat_interleave(part.seq_len)
        self._batch = {"mask": mask, "real": real, "domains": per_token[real]}

    def seen(self, layer: int, inputs: Tensor) -> None:
        """Keep one layer's inputs [B, S, H]."""
        if layer in self._pools:
            inputs = self._pools[layer](inputs, mask=self._batch["mask"])
        rows = inputs.reshape(-1, inputs.shape[-1])
        real = self._batch["real"].to(rows.device)
        if len(rows) != len(real):  # an encoder's mean holds for every token
            rows = rows.repeat_interleave(len(real) // len(rows), dim=0)
        self._reservoir.add(layer, rows[real], self._batch["domains"])
        if layer == self._last:
            raise _SeenEnoughError
