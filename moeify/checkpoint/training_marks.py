"""What training frameworks leave in tensors: names of their wrappers, and none of the values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from moeify.checkpoint.header import StoredTensor
from moeify.errors import CheckpointError

_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Of torch.compile, FSDP and activation checkpointing, which wrap single layers as well."""
_LEADING = ("module.", "base_model.model.")
"""Of DistributedDataParallel and PEFT, which wrap the whole model."""
_COMPONENT = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(_ANYWHERE)})\.")


def unwrapped(tensors: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """``tensors`` by the names that they have in the model itself, and what was taken off them.

    They stay as they are where two would get one name.
    """
    marked = [name for name in tensors if "_orig_mod." in name or "_wrapped_module." in name]
    found = sorted({mark for name in marked for mark in _COMPONENT.findall(name)})
    short = [_COMPONENT.sub("", name) for name in tensors] if found else list(tensors)
    while short and (prefix := next((p for p in _LEADING if _all_start(short, p)), None)):
        found.append(prefix)
        short = [name.removeprefix(prefix) for name in short]
    if not found or len(set(short)) != len(short):
        return tensors, ()
    return {name: replace(tensor, name=name) for name, tensor in zip(short, tensors.values(), strict=True)}, tuple(
        found
    )


def _all_start(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def check_gathered(tensors: Iterable[StoredTensor]) -> None:
    """Raise ``CheckpointError`` for the place-holders that DeepSpeed's ZeRO-3 saves."""
    empty = [t for t in tensors if t.shape == (0,) and t.name.endswith(".weight")]
    if empty:
        raise CheckpointError(
            f"{len(empty)} tensors have no values, such as {empty[0].name!r}: DeepSpeed's ZeRO-3"
            " saved them without gathering them",
            "run zero_to_fp32.py of the training's checkpoint, or train with"
            " stage3_gather_16bit_weights_on_model_save, and name what that writes",
            path=empty[0].path,
        )
