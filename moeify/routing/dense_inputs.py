"""What the feed-forward layers of a dense model read: the inputs of the routers to come."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from moeify.families.base import Family
from moeify.routing.collection import InputReservoir, base_model
from moeify.routing.config import RouteBy
from moeify.routing.data import Blocks

if TYPE_CHECKING:
    from torch import nn

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

    from moeify.modeling.moe_pooling import SequencePool

    base = base_model(model)
    device = next(model.parameters()).device
    up = next(part.name for part in family.dense.ffn if part.role == "up").removesuffix(".weight")
    current: dict[str, Any] = {}
    # An encoder's forward has no use_cache.
    options = {} if family.model_type == "bert" else {"use_cache": False}

    causal, total = family.model_type != "bert", family.dense.num_layers(model.config.to_dict())  # type: ignore[operator, union-attr]

    def hook(layer: int) -> Any:
        pool = SequencePool(causal=causal, layer=layer, num_layers=total)

        def seen(_: Any, args: Any) -> None:
            inputs = args[0]
            if route_by == "sequence":
                inputs = pool(inputs, mask=current["mask"])
            rows = inputs.reshape(-1, inputs.shape[-1])
            real = current["real"].to(rows.device)
            if len(rows) != len(real):  # an encoder's mean holds for every token
                rows = rows.repeat_interleave(len(real) // len(rows), dim=0)
            reservoir.add(layer, rows[real], current["domains"])
            if layer == max(layers):
                raise _SeenEnoughError

        return seen

    handles = [
        base.get_submodule(family.dense.layer.format(layer=layer) + up)
        .register_forward_pre_hook(hook(layer))
        for layer in layers
    ]  # fmt: skip
    try:
        with torch.no_grad():
            for inputs, part in blocks.batches(batch_size):
                current["mask"] = inputs["attention_mask"]
                current["real"] = inputs["attention_mask"].flatten().bool()
                assert part.domains is not None, "the texts have labels"
                per_token = torch.from_numpy(part.domains).repeat_interleave(part.seq_len)
                current["domains"] = per_token[current["real"]]
                with suppress(_SeenEnoughError):
                    base(**{name: tensor.to(device) for name, tensor in inputs.items()}, **options)
    finally:
        for handle in handles:
            handle.remove()
