"""Opening a mixture whose experts can be taken out."""

from __future__ import annotations

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.mixture import Mixture, open_mixture

_HASH_TENSORS = (".tid2eid",)
_HASH_KEYS = ("num_hash_layers",)


def open_prunable(checkpoint: Checkpoint) -> Mixture:
    """Sort the tensors of ``checkpoint``; raises ``UnsupportedModelError`` for a dense one.

    Raises ``CheckpointError`` where experts are missing or a tensor cannot be cut.
    """
    mixture = open_mixture(checkpoint)
    _refuse_hash_routing(checkpoint)
    for layer in mixture.moe_layers:
        if not mixture.router_parts(layer):
            raise TensorNotFoundError(
                mixture.router_name(layer), checkpoint.folder, "give it routers first: moeify attach"
            )
    _check_complete(mixture)
    return mixture


def _check_complete(mixture: Mixture) -> None:
    """Every expert of every layer must be there, and none beyond."""
    every = set(range(mixture.num_experts))
    found: dict[int, set[int]] = {layer: set() for layer in mixture.moe_layers}
    for place in mixture.counted.values():
        if place.kind != "router" and place.layer in found:
            found[place.layer] |= {place.expert} if place.kind == "single" else every
    for layer, experts in found.items():
        if experts != every:
            raise CheckpointError(
                f"layer {layer} holds {len(experts)} experts, config.json says {mixture.num_experts}",
                "the number must be the same in every layer: download the checkpoint again",
                path=mixture.checkpoint.folder,
            )


def _refuse_hash_routing(checkpoint: Checkpoint) -> None:
    if any(checkpoint.config.get(key) for key in _HASH_KEYS) or any(
        name.endswith(_HASH_TENSORS) for name in checkpoint.tensors
    ):
        raise CheckpointError(
            f"{checkpoint.folder.name} routes by a hash of the token, which names experts by"
            " number: they cannot be taken out",
            "prune a checkpoint whose routers choose by scores",
            path=checkpoint.folder,
        )
