"""Which files of a folder hold the weights: those that transformers would load."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from moeify.checkpoint.inside import check_relative, resolve_inside
from moeify.checkpoint.json_text import read_json
from moeify.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTERS = (ADAPTER_WEIGHTS, "adapter_model.bin")
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_INDEX_END = ".index.json"
_PICKLES = ("pytorch_model*.bin",)
_OTHER_PICKLES = ("*.pt", "*.pth", "*.ckpt")  # often of a training, beside its weights
_IN_OTHER_FORMS = {
    "model.*.safetensors": "transformers loads it as a variant only: rename it model.safetensors",
    "*.safetensors": "if its tensors are named as in transformers, rename it model.safetensors",
    "*/*.distcp": "it belongs to a training state: accelerate merge-weights makes a model of it",
    "global_step*/*": "run the zero_to_fp32.py that DeepSpeed put beside it",
    "checkpoint-*/model*.safetensors": "name that folder",
}
"""Where weights are that no class loads from here, and what makes a model of them."""

Index = dict[str, list[str]]
"""The names of the tensors in each file, as an index has it."""


def first_file(config: dict[str, Any], exists: Callable[[str], bool]) -> str | None:
    """The weights file, or the index, that transformers 5 begins with; None where there is none.

    A whole file goes before an index, and a file that config.json names before both.
    """
    named = config.get("transformers_weights")
    names = (named,) if isinstance(named, str) else (WEIGHTS_FILE, INDEX_FILE)
    return next((name for name in names if exists(name)), None)


def is_index(name: str) -> bool:
    """Whether ``name`` is that of an index."""
    return name.endswith(_INDEX_END)


def local_file(folder: Path, config: dict[str, Any]) -> str:
    """``first_file`` of a folder; raises ``CheckpointError`` where there is none."""
    found = first_file(config, lambda name: _is_there(folder, name))
    if found is None:
        raise no_weights(folder, config)
    return found


def _is_there(folder: Path, name: str) -> bool:
    check_relative(name)
    return (folder / name).exists() and not resolve_inside(folder, name).is_dir()


def read_index(folder: Path, name: str = INDEX_FILE) -> Index:
    """The index of a folder; raises ``CheckpointError``."""
    weight_map = read_json(resolve_inside(folder, name)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{name} has no weight_map", path=folder)
    return by_file(weight_map, folder)


def by_file(weight_map: dict[str, Any], folder: Path) -> Index:
    """A ``weight_map`` from tensor to file, turned round; raises ``CheckpointError``."""
    index: Index = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{INDEX_FILE}: weight_map must name files", path=folder)
        index.setdefault(file, []).append(name)
    return index


def unused_files(folder: Path, first: str, loaded: Collection[str]) -> list[str]:
    """Weights and indexes beside ``first``, at which transformers begins, that it does not load."""
    beside = [path.name for path in folder.glob("model*.safetensors")]
    unread = first != INDEX_FILE and (folder / INDEX_FILE).exists()
    if unread and not _names_only(folder, first):
        beside.append(INDEX_FILE)
    return sorted({*beside} - {first, *loaded})


def _names_only(folder: Path, first: str) -> bool:
    """Whether the index says what is so: that all tensors are in ``first``."""
    try:
        return set(read_index(folder)) == {first}
    except CheckpointError:
        return False


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter and no model, whatever else lies there."""
    model = first_file({}, lambda name: (folder / name).exists())
    return model is None and (folder / ADAPTER_CONFIG).is_file()


def check_no_adapter(folder: Path) -> None:
    """Raise ``CheckpointError`` for an adapter beside a whole model, which transformers applies."""
    found = next((name for name in ADAPTERS if (folder / name).exists()), None)
    if found is not None and (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{folder} holds a whole model and an adapter ({found}), which transformers applies to"
            " it where peft is installed",
            f"merge it with peft's merge_and_unload, or move {ADAPTER_CONFIG} and {found} to a"
            " folder of their own, which --experts-from takes",
            path=folder / found,
        )


def adapter_error(name: str | Path) -> CheckpointError:
    """What is wrong with an adapter where a checkpoint is wanted."""
    return CheckpointError(
        f"{name} is an adapter, which changes a base and is no model itself",
        "merge it into its base with peft's merge_and_unload and name the result, or upcycle the"
        f" base with --experts-from {name}",
        path=Path(name),
    )


def no_weights(folder: Path, config: dict[str, Any] | None) -> CheckpointError:
    """Why ``folder`` cannot be opened: without config.json (None), or without weights."""
    if is_adapter(folder):
        return adapter_error(folder)
    if inner := next(iter(sorted(folder.glob("*0_*/config.json"))), None):
        said = f"{folder} is a sentence encoder that keeps its model in {inner.parent.name}"
        hint = f"name {inner.parent}, and put what comes of it in its place"
    elif config is None:
        said = f"{folder} is not a checkpoint: it has no config.json"
        hint = "name the folder that transformers' save_pretrained wrote, or a Hub id"
    elif isinstance(named := config.get("transformers_weights"), str):
        said = f"config.json names {named!r} as the weights, which is not in {folder}"
        hint = "download it, or take transformers_weights out of config.json"
    elif not (pickle := _first(folder, _PICKLES)) and (found := _first(folder, _IN_OTHER_FORMS)):
        said = f"{folder} holds {found[1]} and neither {WEIGHTS_FILE} nor {INDEX_FILE}"
        hint = _IN_OTHER_FORMS[found[0]]
    elif pickle := pickle or _first(folder, _OTHER_PICKLES):
        said = f"{folder} holds {pickle[1]} and no safetensors file"
        hint = conversion_hint(str(folder), config)
    else:
        said = f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}"
        hint = "name the folder that holds the weights"
    return CheckpointError(said, hint, path=folder)


def _first(folder: Path, patterns: Iterable[str]) -> tuple[str, Path] | None:
    """The first of ``patterns`` that finds a file, and the file relative to ``folder``."""
    found = ((pattern, path) for pattern in patterns for path in folder.glob(pattern))
    return next(((pattern, path.relative_to(folder)) for pattern, path in found), None)


def conversion_hint(source: str, config: dict[str, Any]) -> str:
    """The command that turns a checkpoint's pickled weights into safetensors.

    It loads the very class that config.json names, because AutoModel would drop the head.
    """
    named = config.get("architectures") or ["AutoModel"]
    name = str(named[0]) if isinstance(named, list) else "AutoModel"
    target = f"./{source.rstrip('/').rsplit('/', 1)[-1]}-safetensors"
    code = (
        f"from transformers import {name if name.isidentifier() else 'AutoModel'} as M,"
        f" AutoTokenizer as T; s, t = {json.dumps(source)}, {json.dumps(target)};"
        " M.from_pretrained(s).save_pretrained(t); T.from_pretrained(s).save_pretrained(t)"
    )
    return f"convert it once: python -c {shlex.quote(code)}"
