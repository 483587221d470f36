"""Loading a checkpoint into the class its config names, without running code from its folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import has_tokenizer
from moeify.errors import CheckpointError, MissingExtraError
from moeify.modeling import REMOTE_CODE

__all__ = ["load_model", "load_tokenizer", "model_class", "outline", "quiet_transformers"]


def load_model(
    folder: Path, dtype: str = "auto", device_map: Mapping[str, Any] | None = None
) -> Any:
    """The model in ``folder``, in evaluation mode, as the class that config.json names.

    Classes come from transformers and from moeify, never from the folder. ``device_map`` names
    modules and their devices: nothing is read for those on the meta device, and nothing moves
    between devices later. Raises ``CheckpointError`` when transformers cannot load it.
    """
    if device_map is not None:
        return _placed(folder, dtype, device_map)
    with _quiet_loading(folder):
        config = _config(folder)
        model = model_class(config).from_pretrained(folder, config=config, dtype=dtype)
    return model.eval()


def _placed(folder: Path, dtype: str, device_map: Mapping[str, Any]) -> Any:
    try:
        from accelerate.hooks import remove_hook_from_submodules
    except ModuleNotFoundError as error:
        raise MissingExtraError("accelerate", "train") from error
    with _quiet_loading(folder):
        config = _config(folder)
        model = model_class(config).from_pretrained(
            folder, config=config, dtype=dtype, device_map=dict(device_map)
        )
    remove_hook_from_submodules(model)  # they move inputs from device to device
    return model.eval()


def outline(folder: Path) -> Any:
    """The modules of the model in ``folder``, without weights."""
    import torch

    with _quiet_loading(folder), torch.device("meta"):
        config = _config(folder)
        return model_class(config)(config)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``; raises ``CheckpointError`` when there is none."""
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer", "copy the tokenizer's files of its base model into it"
        )
    with _quiet_loading(folder):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def model_class(config: Any) -> Any:
    """The class that a transformers config names in ``architectures``."""
    import transformers

    name = (config.architectures or [""])[0]
    if config.model_type in REMOTE_CODE:
        home: Any = import_module(f"moeify.modeling.modeling_{config.model_type}")
    else:
        home = transformers
    found = getattr(home, name, None)
    if found is None:
        raise CheckpointError(
            f"transformers has no class {name!r} for model_type {config.model_type!r}",
            "mend architectures in config.json",
        )
    return found


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging and drawing bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # A Qwen2-MoE whose shared expert has no neurons is what upcycle writes.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _quiet_loading(folder: Path) -> Iterator[None]:
    """Keep transformers quiet, and turn its many exceptions into one."""
    try:
        with quiet_transformers():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"transformers cannot load {folder}: {reason}") from error
