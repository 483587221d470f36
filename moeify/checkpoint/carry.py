"""Carrying over what belongs to a model and is no weight: tokenizer, processor, modules."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from moeify.checkpoint.copying import copy_file
from moeify.checkpoint.download import MODEL_FILES
from moeify.checkpoint.foreign_code import cleaned, code_note
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.naming import some
from moeify.errors import CheckpointError, OutputError

TOKENIZER_CONFIG = "tokenizer_config.json"
_REWRITTEN = ("config.json", "moeify.json", "README.md")
_FILES = (*MODEL_FILES, ".gitattributes")
_OTHERS = (
    "*.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "*_results.json",
    "*_args.json",
    "requirements*.txt",
)
"""Of what ``_FILES`` covers, what belongs to weights that do not go along, or to a training."""
_FOLDERS = ("[1-9]*_[A-Z]*", "*tokenizer", "additional_chat_templates")
"""Modules of sentence-transformers (1_Pooling), and what processors and tokenizers put aside."""
_WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.gguf",
    "*.tflite",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.ckpt",
    "*.index.json",
)
_CODE = ("*.py", "*.pyc")  # nobody vouched for it, and it is for the model that was
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.dill")
_MODULE_WEIGHTS = "[1-9]*_[A-Z]*/pytorch_model.bin"


@dataclass(frozen=True, kw_only=True)
class Carried:
    """The files of a checkpoint that go along, relative to its folder, and their size.

    ``notes`` say what a user should know of what stays behind.
    """

    names: tuple[str, ...]
    nbytes: int
    notes: tuple[str, ...]


def is_part(folder: str) -> bool:
    """Whether a sub-folder of this name is a part of a model."""
    return _matches(folder, _FOLDERS)


def carried(folder: Path, leave: Collection[str] = ()) -> Carried:
    """What of a checkpoint goes along unchanged, but for ``leave``.

    That is what libraries write for a model, and nothing else: weights at the top, exports,
    training states, code and pickles stay behind. Raises ``CheckpointError`` for a link out of the
    folder and for anything that is no regular file.
    """
    names: list[str] = []
    left: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = entry.name
        if name in leave or name in _REWRITTEN:
            continue
        if is_part(name):
            names += _within(folder, name) if entry.is_dir(follow_symlinks=False) else [name]
        elif entry.is_dir():
            left += [] if name.startswith((".", "__")) else [f"{name}/"]
        elif _matches(name, _FILES) and not _matches(name, _OTHERS):
            names.append(name)
        elif not (name.startswith(".") or _matches(name, (*_WEIGHTS, *_CODE))):
            left.append(name)
    for name in names:
        _check_regular(resolve_inside(folder, name), name)
        cleaned(folder / name)  # what cannot be read is refused before the long work
    nbytes = sum(os.stat(folder / name).st_size for name in names)
    notes = (f"left behind, as no part of the model: {some(left, 8)}",) if left else ()
    return Carried(names=tuple(names), nbytes=nbytes, notes=(*code_note(folder), *notes))


def _within(folder: Path, part: str) -> Iterator[str]:
    for place, subfolders, files in os.walk(folder / part):
        subfolders.sort()
        links = [name for name in subfolders if Path(place, name).is_symlink()]
        for file in [*links, *sorted(files)]:
            name = PurePosixPath(Path(place, file).relative_to(folder)).as_posix()
            pickle = _matches(file, _PICKLES) and not fnmatch(name, _MODULE_WEIGHTS)
            if not pickle and not _matches(file, _CODE):
                yield name


def carry_files(source: Path, target: Path, leave: Collection[str] = ()) -> None:
    """Copy what ``carried`` finds, JSON without keys that name code.

    Raises ``OutputError`` where ``target`` takes two names for one, as file systems do that know
    no difference between large and small letters. See ``copy_file`` for the other errors.
    """
    taken = {path.name for path in target.iterdir()}
    for name in carried(source, leave).names:
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if name not in taken and os.path.lexists(destination):
            raise OutputError(
                f"{name!r} and another file of the source are one file in {target.parent}",
                "rename one of them, or choose an output on a file system that tells them apart",
            )
        text = cleaned(source / name)
        if text is not None:
            destination.write_text(text, encoding="utf-8")
        else:
            copy_file(source / name, destination)


def _check_regular(path: Path, name: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CheckpointError(f"{name!r} in {path.parent} is not a regular file", path=path)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
