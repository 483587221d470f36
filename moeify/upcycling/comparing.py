"""What sets a source of experts apart from the base, found before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeify.checkpoint.header import FLOAT_DTYPES
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.json_text import read_json
from moeify.errors import CheckpointError
from moeify.families.base import DenseLayout
from moeify.families.dense_checkpoint import Dense
from moeify.families.mixture import Mixture
from moeify.families.values import Config
from moeify.upcycling.adapters import Adapter
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.sources import ExpertSource

_UNIMPORTANT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
        "hidden_act",
        "activation_function",
    }
)
_NAMES = {
    "L": "layers",
    "H": "hidden size",
    "F": "FFN width",
    "V": "vocabulary",
    "P": "positions",
    "A": "query width",
    "K": "key and value width",
    "D": "head width",
    "C": "classes",
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
_SHOWN = 5
_ROPE = "rope_parameters"


def compare_sources(
    base: Dense, sources: tuple[ExpertSource, ...], options: UpcycleConfig, layers: tuple[int, ...]
) -> tuple[str, ...]:
    """Warnings about differences that can be lived with, each source once.

    Experts take the place of the FFN of ``layers``.

    Raises ``CheckpointError`` with all differences that cannot, of every source.
    """
    mean = options.rest == "mean"
    fatal: list[str] = []
    warnings: list[str] = []
    for entry in {entry.source.folder.resolve(): entry for entry in sources}.values():
        name = entry.source.name
        if entry.adapter is not None:
            warnings += _besides_experts(base, entry, entry.adapter, mean, layers)
        elif entry.source.folder.resolve() != base.checkpoint.folder.resolve():
            fatal += [f"{name}: {found}" for found in _fatal(base, entry, mean)]
            warnings += [f"{name}: {found}" for found in _bearable(base, entry, mean)]
    if fatal:
        raise CheckpointError(
            f"experts cannot be made of these checkpoints beside {base.checkpoint.folder.name}: " + "; ".join(fatal),
            "name checkpoints that were trained from the same base",
        )
    return tuple(warnings)


def compare_joining(view: Mixture, layout: DenseLayout, entries: tuple[ExpertSource, ...]) -> tuple[str, ...]:
    """Warnings about dense checkpoints of type ``layout`` that join a mixture.

    Raises ``CheckpointError`` with all differences that cannot be lived with.
    """
    fatal = [f"{entry.source.name}: {found}" for entry in entries for found in _cannot_join(view, layout, entry)]
    if fatal:
        raise CheckpointError(
            f"these checkpoints cannot join {view.checkpoint.folder.name}: " + "; ".join(fatal),
            "name checkpoints that were trained from the base of the mixture",
        )
    return tuple(f"{entry.source.name}: {found}" for entry in entries for found in _joins_changed(view, entry))


def _cannot_join(view: Mixture, layout: DenseLayout, entry: ExpertSource) -> Iterator[str]:
    if entry.view.layout.model_type != layout.model_type:
        yield f"its model_type is {entry.view.layout.model_type}, not {layout.model_type}"
        return
    yield from _roles({role for spec in view.layout.experts for role in spec.roles}, entry)
    ours, theirs = view.checkpoint.config, entry.view.checkpoint.config
    sizes, wanted = layout.dims(theirs), view.layout.dims(ours)
    wanted = {**wanted, "F": wanted["F"] * view.slices}
    for symbol in ("L", "H", "F"):
        if sizes[symbol] != wanted[symbol]:
            yield f"{_NAMES[symbol]} {sizes[symbol]}, not {wanted[symbol]}"
    yield from _activations(layout, ours, theirs)


def _joins_changed(view: Mixture, entry: ExpertSource) -> Iterator[str]:
    yield from (*entry.view.checkpoint.notes, *entry.view.notes)
    ours = entry.view.layout.canonical(view.checkpoint.config).get(_ROPE)
    theirs = entry.view.checkpoint.config.get(_ROPE)
    if ours != theirs:
        yield f"{_ROPE} {_short(theirs)} instead of {_short(ours)}; the mixture's are used"
    if said := _tokenizer_difference(view.checkpoint.folder, entry.source.folder):
        yield f"{said}; the mixture's tokenizer is used"
    dtypes = {
        (tensor.dtype, view.up(layer)[0].tensor.dtype)
        for layer in view.moe_layers
        for tensor in entry.view.ffn(layer).values()
    }
    for own, other in sorted(dtypes):
        if own != other:
            yield f"its weights are {own} and are converted to {other}"


def _roles(wanted: set[str], entry: ExpertSource) -> Iterator[str]:
    held = {part.role for part in entry.view.layout.ffn}
    if held != wanted:
        yield f"FFN of {_listed(held)}, not {_listed(wanted)}"


def _listed(roles: set[str]) -> str:
    return ", ".join(sorted(roles))


def _activations(layout: DenseLayout, ours: Config, theirs: Config) -> Iterator[str]:
    key, default = layout.activation
    own, other = ours.get(key) or default, theirs.get(key) or default
    if own != other:
        yield f"{key} is {other!r}, not {own!r}"


def _besides_experts(
    base: Dense, entry: ExpertSource, adapter: Adapter, mean: bool, layers: tuple[int, ...]
) -> Iterator[str]:
    """What an adapter changes outside of the FFNs, which all experts share."""
    dense = base.layout
    experts = {dense.layer.format(layer=n) + part.name for n in layers for part in dense.ffn}
    if not experts & (adapter.changes.keys() | adapter.replaced.keys()):
        raise CheckpointError(
            f"adapter {entry.source.name} changes no FFN of the layers that get experts, but"
            f" {', '.join(adapter.besides(()))}",
            "name an adapter whose target_modules include the FFN's, or merge it into a checkpoint"
            " of its own with peft's merge_and_unload",
            path=entry.source.folder,
        )
    yield from (f"{entry.source.name}: {said}" for said in adapter.warnings)
    used = experts | base.base.keys() | base.heads.keys() if mean else experts
    if others := adapter.besides(used):
        yield (
            f"{entry.source.name}: experts share everything but their FFNs, so what this adapter"
            f" does to {', '.join(others)} is left out"
        )


def _fatal(base: Dense, entry: ExpertSource, mean: bool) -> Iterator[str]:
    ours, theirs = base.checkpoint.config, entry.view.checkpoint.config
    if base.layout.model_type != entry.view.layout.model_type:
        yield f"its model_type is {entry.view.layout.model_type}, not {base.layout.model_type}"
        return
    yield from _roles({part.role for part in base.layout.ffn}, entry)
    yield from _sizes(base, entry, mean)
    yield from _activations(base.layout, ours, theirs)
    if not mean:
        return
    class_name = base.layout.architecture(ours)
    if base.layout.architecture(theirs) != class_name:
        yield f"its class is {base.layout.architecture(theirs)}, not {class_name}"
    missing = sorted((base.base.keys() - entry.view.base) | (base.heads.keys() - entry.view.heads))
    if missing:
        yield f"it has no {', '.join(missing[:_SHOWN])}"


def _sizes(base: Dense, entry: ExpertSource, mean: bool) -> Iterator[str]:
    ours = base.layout.dims(base.checkpoint.config)
    theirs = base.layout.dims(entry.view.checkpoint.config)
    needed = _NAMES.keys() if mean else ("L", "H", "F")
    for symbol in needed:
        if ours.get(symbol) != theirs.get(symbol):
            yield f"{_NAMES[symbol]} {theirs.get(symbol)}, not {ours.get(symbol)}"


def _bearable(base: Dense, entry: ExpertSource, mean: bool) -> Iterator[str]:
    ours, theirs = base.checkpoint.config, entry.view.checkpoint.config
    if base.layout.model_type != entry.view.layout.model_type:
        return
    yield from (*entry.view.checkpoint.notes, *entry.view.notes)
    if not mean and ours.get("vocab_size") != theirs.get("vocab_size"):
        yield (
            f"its vocabulary has {theirs.get('vocab_size')} entries and the base's"
            f" {ours.get('vocab_size')}; the base's is used"
        )
    if changed := list(_config_changes(ours, theirs)):
        yield f"config.json differs, and the base's is used: {', '.join(changed)}"
    yield from _dtypes(base, entry)
    if found := _tokenizer_difference(base.checkpoint.folder, entry.source.folder):
        yield f"{found}; the base's tokenizer is used"


def _config_changes(ours: Config, theirs: Config) -> Iterator[str]:
    # A key that one side leaves out may hold its default there, so both must name it.
    for key in sorted(ours.keys() & theirs.keys() - _UNIMPORTANT):
        if ours[key] != theirs[key]:
            yield f"{key} {_short(theirs[key])} instead of {_short(ours[key])}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _dtypes(base: Dense, entry: ExpertSource) -> Iterator[str]:
    pairs = {
        (entry.view.base[name].dtype, tensor.dtype) for name, tensor in base.base.items() if name in entry.view.base
    }
    for theirs, ours in sorted(pairs):
        if theirs != ours and theirs in FLOAT_DTYPES:
            yield f"its weights are {theirs} and are converted to the output's dtype"


def _tokenizer_difference(ours: Path, theirs: Path) -> str | None:
    """How two folders' tokenizers differ; None where they do not, or one folder has none."""
    for file in _TOKENIZER_FILES:
        if not ((ours / file).is_file() and (theirs / file).is_file()):
            continue
        ours_path, theirs_path = resolve_inside(ours, file), resolve_inside(theirs, file)
        if ours_path.read_bytes() == theirs_path.read_bytes():
            return None  # most often, and no vocabulary has to be parsed then
        left, right = _vocabulary(ours_path), _vocabulary(theirs_path)
        differing = sorted(
            (token for token in left.keys() | right.keys() if left.get(token) != right.get(token)),
            key=lambda token: (right.get(token, left.get(token, 0)), token),
        )
        if not differing:
            return f"its {file} holds the same tokens under other rules"
        shown = ", ".join(repr(token) for token in differing[:_SHOWN])
        more = ", ..." if len(differing) > _SHOWN else ""
        return f"its tokenizer differs in {len(differing)} tokens ({shown}{more})"
    return None


def _vocabulary(path: Path) -> dict[str, int]:
    """Tokens and their numbers."""
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return {token: number for number, token in enumerate(lines)}
    document = read_json(path)
    if path.name == "vocab.json":
        return {str(token): number for token, number in document.items()}
    model = document.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    vocabulary: dict[str, object] = {}
    if isinstance(found, dict):
        vocabulary |= found
    elif isinstance(found, list):  # Unigram models list tokens with their scores
        vocabulary |= {
            str(entry[0]): number for number, entry in enumerate(found) if isinstance(entry, list) and entry
        }
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            vocabulary[str(token.get("content"))] = token.get("id")
    return {token: number for token, number in vocabulary.items() if type(number) is int}
