"""LoRA adapters as PEFT saves them: which of the base's tensors they change, and how."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor, read_header
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.lowrank import LowRank
from moeify.checkpoint.source import Source
from moeify.checkpoint.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from moeify.errors import CheckpointError
from moeify.families.dense_checkpoint import Dense

_LARGEST_ALPHA = 1e30
_ROOT = "base_model.model."
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_LAYER = re.compile(r"^.*?\.\d+\.")
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "velora_config",
)
_KEPT_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to initialise that leave the base's own weights alone."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter does to its base, by the base's canonical tensor names.

    ``changes`` are added to a tensor, ``replaced`` take its place; heads go by their full names.
    ``others`` are changes that experts have no use for and that do not fit the base's files, such
    as to a tied head or to embeddings of another size; ``warnings`` are of the whole adapter.
    """

    changes: dict[str, LowRank]
    replaced: dict[str, StoredTensor]
    others: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def besides(self, used: Container[str]) -> list[str]:
        """What it changes besides the tensors ``used``, each kind of module once."""
        unused = [name for name in (*self.changes, *self.replaced) if name not in used]
        short = (_LAYER.sub("", f".{name}").removeprefix(".") for name in (*unused, *self.others))
        return list(dict.fromkeys(name.removesuffix(".weight") for name in short))


def open_adapter(source: Source, base: Dense, base_source: Source, *, whole: bool = False) -> Adapter:
    """The adapter in ``source`` on ``base``, from its config and its file's header.

    FFNs must fit the base, with ``whole`` everything that the base has. Raises ``CheckpointError``
    for a kind that is no plain LoRA, and for what does not fit.
    """
    config = read_json(resolve_inside(source.folder, ADAPTER_CONFIG))
    _check_kind(source, config)
    factors, tensors = _read_tensors(source)
    changes: dict[str, LowRank] = {}
    replaced: dict[str, StoredTensor] = {}
    others: dict[str, CheckpointError] = {}
    for stored, tensor in tensors.items():
        name = _canonical(stored, base)
        with _bearable(name, base, others, whole):
            _check_replaced(source, base, name, tensor)
            replaced[name] = tensor
    for module, pair in factors.items():
        name = _canonical(f"{module}.weight", base)
        with _bearable(name, base, others, whole):
            changes[name] = _change(source, config, base, module, name, pair)
    if others and not (changes or replaced):
        raise next(iter(others.values()))
    return Adapter(
        changes=changes,
        replaced=replaced,
        others=tuple(others),
        warnings=tuple(_of_another_base(config, base, base_source)),
    )


def _read_tensors(source: Source) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """The two factors of each module, and whole tensors, by the names that the base has."""
    path = resolve_inside(source.folder, ADAPTER_WEIGHTS)
    if not path.is_file():
        raise CheckpointError(
            f"adapter {source.name} has no {ADAPTER_WEIGHTS}",
            "save it again with peft's save_pretrained, which writes safetensors",
            path=source.folder,
        )
    factors: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in read_header(path)[0].items():
        if found := _FACTOR.fullmatch(name):
            factors.setdefault(found[1], {})[found[2]] = tensor
        else:
            whole[name.removeprefix(_ROOT).replace(".base_layer.", ".")] = tensor
    return factors, whole


@contextmanager
def _bearable(name: str, base: Dense, others: dict[str, CheckpointError], whole: bool) -> Iterator[None]:
    """List a change that does not fit the base among ``others`` where experts do not need it."""
    try:
        yield
    except CheckpointError as error:
        known = name in base.base or name in base.heads
        if _is_ffn(name, base) or (whole and known):
            raise
        others[name] = error


def _is_ffn(name: str, base: Dense) -> bool:
    """Whether a tensor would be an FFN's, in layers of the base or beyond them."""
    return name.endswith(tuple(f".{part.name}" for part in base.layout.ffn))


def _canonical(name: str, base: Dense) -> str:
    """A tensor's name relative to the base model, or its full name in a head."""
    return base.known_as(name) or name


def _check_kind(source: Source, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"adapter {source.name} is of the kind {kind!r}, and experts take LORA only",
            "merge it into its base with peft's merge_and_unload, and name the result",
            path=source.folder,
        )
    for option in _UNSUPPORTED:
        if config.get(option):
            raise CheckpointError(
                f"adapter {source.name} uses {option}, and experts take plain LoRA only",
                "merge it into its base with peft's merge_and_unload, and name the result",
                path=source.folder,
            )
    start = config.get("init_lora_weights")
    if start not in _KEPT_BASE:
        raise CheckpointError(
            f"adapter {source.name} was initialised by {start!r}, which changes the base's weights",
            "merge it into its base with peft's merge_and_unload, and name the result",
            path=source.folder,
        )


def _of_another_base(config: dict[str, Any], base: Dense, base_source: Source) -> Iterator[str]:
    """A warning where the base's name is another one: shapes decide, names change with copies."""
    wanted = config.get("base_model_name_or_path")
    own = base.checkpoint.config.get("_name_or_path")
    known = {_last(base_source.name), _last(str(base_source.folder.resolve())), _last(str(own))}
    if wanted and _last(str(wanted)) not in known:
        yield (
            f"it was trained on {wanted}, not on {base_source.name}, and fits it by its shapes:"
            " right for another copy of the same weights only"
        )


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _change(
    source: Source, config: dict[str, Any], base: Dense, module: str, name: str, pair: dict[str, StoredTensor]
) -> LowRank:
    target = base.base.get(name) or base.heads.get(name)
    if len(pair) != 2 or target is None:
        what = "only one of its two matrices" if target is not None else "no tensor of the base"
        raise CheckpointError(
            f"adapter {source.name} changes {module!r}, for which there is {what}",
            "name an adapter of this base, saved by peft",
            path=source.folder,
        )
    down, up = pair["A"], pair["B"]
    shape = (up.shape[0], down.shape[-1]) if len(up.shape) == len(down.shape) == 2 else None
    transposed = _is_transposed(base, name)
    stored = target.shape[::-1] if transposed else target.shape
    if shape != stored or up.shape[1] != down.shape[0]:
        raise CheckpointError(
            f"adapter {source.name} changes {module!r} by a product of {list(up.shape)} and"
            f" {list(down.shape)}, the base's weight is {list(target.shape)}",
            "it belongs to another base: name one of this base",
            path=source.folder,
        )
    for tensor in (up, down):
        _check_float(source, tensor)
    scale = _alpha(config, module) / (math.sqrt(down.shape[0]) if config.get("use_rslora") else down.shape[0])
    return LowRank(up=up, down=down, scale=scale, transposed=transposed)


def _is_transposed(base: Dense, name: str) -> bool:
    """Whether a tensor is stored [in, out], as GPT-2's Conv1D has its matrices within layers."""
    up = next(part for part in base.layout.ffn if part.role == "up")
    return up.shape[0] == "H" and _LAYER.match(f".{name}") is not None


def _alpha(config: dict[str, Any], module: str) -> float:
    """The adapter's alpha for a module; patterns are matched against the end of its name."""
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return _number(value)
    return _number(config.get("lora_alpha", 8))


def _number(alpha: object) -> float:
    if type(alpha) in (int, float) and abs(alpha) < _LARGEST_ALPHA:  # type: ignore[arg-type]
        return float(alpha)  # type: ignore[arg-type]
    raise CheckpointError(
        f"{ADAPTER_CONFIG}: alpha must be a number below {_LARGEST_ALPHA:g}, not {alpha!r:.40}",
        "save the adapter again with peft's save_pretrained",
    )


def _check_replaced(source: Source, base: Dense, name: str, tensor: StoredTensor) -> None:
    target = base.base.get(name) or base.heads.get(name)
    if target is None or target.shape != tensor.shape:
        what = "no tensor of the base" if target is None else f"one of shape {list(target.shape)}"
        raise CheckpointError(
            f"adapter {source.name} replaces {name!r} by one of shape {list(tensor.shape)}, for which there is {what}",
            "it belongs to another base: name one of this base",
            path=source.folder,
        )
    _check_float(source, tensor)


def _check_float(source: Source, tensor: StoredTensor) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"adapter {source.name}: {tensor.name!r} has dtype {tensor.dtype}, which is no float",
            "name an adapter that is not quantised",
            path=tensor.path,
        )
