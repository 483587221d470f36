"""Carrying over what is not a weight: tokenizer, generation config, sub-folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from moeify.checkpoint.foreign_code import cleaned
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.ledger import Ledger
from moeify.errors import CheckpointError, OutputError

__all__ = ["carried_files", "carry_files"]

_REWRITTEN = ("config.json", "moeify.json", "README.md")
_WEIGHTS = ("*.safetensors", "*.index.json", "*.bin", "*.h5", "*.msgpack", "*.ot", "*.onnx",
            "*.gguf", "*.tflite", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # fmt: skip
_CODE = ("*.py",)  # a converted model has no use for the source's code, and nobody vouched for it
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.dill")
_FOLDERS = (".git", ".cache", "__pycache__", "onnx", "openvino", "coreml", "runs", "checkpoint-*")


def carried_files(folder: Path) -> Iterator[str]:
    """Names of the files of a checkpoint that go along unchanged, relative to ``folder``.

    Left out are the weights at the top, exports of the dense model, code, pickles, and what is
    written anew. Raises ``CheckpointError`` for a link out of the folder and for anything that is
    no regular file.
    """
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(n for n in subfolders if not _matches(n, _FOLDERS))
        at_top = Path(place) == folder
        links = [name for name in subfolders if Path(place, name).is_symlink()]
        for name in [*links, *sorted(files)]:
            if at_top and (name in _REWRITTEN or _matches(name, _WEIGHTS)):
                continue
            relative = PurePosixPath(Path(place, name).relative_to(folder)).as_posix()
            if _matches(name, _CODE) or (_matches(name, _PICKLES) and not _is_module(relative)):
                continue
            _check_regular(resolve_inside(folder, relative), relative)
            yield relative


def carry_files(
    source: Path, target: Path, ledger: Ledger | None = None, leave: Collection[str] = ()
) -> None:
    """Copy ``carried_files`` but for ``leave``, JSON without keys that name code.

    Raises ``OutputError`` where ``target`` takes two names for one, as file systems do that know
    no difference between large and small letters. See ``copy_file`` for the other errors.
    """
    ledger = ledger or Ledger()
    taken = {path.name for path in target.iterdir()}
    for name in carried_files(source):
        if name in leave:
            continue
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if name not in taken and os.path.lexists(destination):
            raise OutputError(
                f"{name!r} and another file of the source are one file in {target.parent}",
                "rename one of them, or choose an output on a file system that tells them apart",
            )
        text = cleaned(source / name)
        if text is None:
            ledger.copy(source / name, target, name)
        else:
            destination.write_text(text, encoding="utf-8")


def _is_module(name: str) -> bool:
    """Whether ``name`` holds the weights of a module of a sentence encoder, which needs them."""
    return fnmatch(name, "[0-9]*_*/pytorch_model.bin")


def _check_regular(path: Path, name: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CheckpointError(f"{name!r} in {path.parent} is not a regular file", path=path)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
