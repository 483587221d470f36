"""A loaded model's weights under the names that its checkpoint has for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from moeify.checkpoint.tensor_file import write_tensors


def save_in_stored_form(model: Any, weights: Mapping[str, Tensor], names: Collection[str], path: Path) -> None:
    """Write what ``in_stored_form`` returns into a file of its own."""
    stored = in_stored_form(model, weights, names)
    seen: set[int] = set()
    for name, tensor in stored.items():
        if tensor.data_ptr() in seen:  # a tied weight, or a part of one; a file holds each by itself
            stored[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    write_tensors(stored, path)


def in_stored_form(model: Any, weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """``weights`` as they are, or with what loading renamed and joined undone.

    Whichever has more of its names in ``names``, those of the checkpoint's tensors. A tied weight
    comes under each of its names that is there.
    """
    found = _under_every_name(model, weights, names)
    undone = dict(revert_weight_conversion(model, dict(found)))
    return max(undone, found, key=lambda form: sum(name in names for name in form) / len(form))


def _under_every_name(model: Any, weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in weights:
            present = [alias for alias in aliases[id(parameter)] if alias in names]
            found |= dict.fromkeys(present or [name], weights[name])
    return found
