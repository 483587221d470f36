"""Weights that lie in shards on several processes (FSDP): made whole, and cut up again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from moeify.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def uses_fsdp() -> bool:
    """Whether accelerate launch was told to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding(unsharded: str | None) -> None:
    """Check what accelerate launch was told about FSDP, and let every process load all weights.

    Raises ``ConfigError`` for FSDP's first version, and with the reason of ``unsharded`` types.
    """
    if not uses_fsdp():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "FSDP's first version cannot hold float32 routers among weights of another dtype",
            "pass --fsdp_version 2 to accelerate launch",
        )
    if unsharded is not None:
        raise ConfigError(unsharded, "start the processes with torchrun; each holds the whole model then")
    # Otherwise transformers loads them in one process, and the others get theirs when it trains.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def name_layers(model: Any) -> None:
    """Let ``model`` name only those classes of layers that it has, as accelerate wants it.

    A mixture without a dense layer has none of the dense class.
    """
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = [n for n in model._no_split_modules or () if n in present]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of ``tensor`` only."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, on the CPU. Every process has to call it: shards are gathered."""
    from torch.distributed.tensor import DTensor

    held = tensor.detach()
    if isinstance(held, DTensor):
        # Shards that FSDP keeps on the CPU travel over the device that the processes talk by.
        shards: Any = held.to(held.device_mesh.device_type)
        held = shards.full_tensor()
    return held.cpu().contiguous()


def fill(target: Tensor, values: Tensor) -> None:
    """Copy ``values`` into ``target``, of which a process may hold a part; all have to call it."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(target, DTensor):
            shards = distribute_tensor(values, target.device_mesh, target.placements)
            target.to_local().copy_(shards.to_local())
        else:
            target.copy_(values)
