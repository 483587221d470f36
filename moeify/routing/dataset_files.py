"""Which files a dataset's name means: files, globs and folders, by split, and how they are coded."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moeify.checkpoint.inside import resolve_inside
from moeify.errors import CheckpointError, DatasetError
from moeify.routing.json_lines import is_json_line

KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""How files are read, by their endings in small letters."""
_PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_HEAD = 64
_SHOWN = 20
_SAVED = "dataset_dict.json"
_BESIDE = {"state.json", "dataset_info.json"}  # what save_to_disk writes besides data


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """Files of one kind, by split."""

    kind: str
    splits: dict[str, list[Path]]

    @property
    def first(self) -> Path:
        """One of the files, to look into."""
        return next(iter(self.splits.values()))[0]


def kind_of(name: str) -> str | None:
    """How a file of this name is read; None for other endings."""
    path = Path(name.lower())
    return KINDS.get((path.with_suffix("") if path.suffix in _PACKED else path).suffix)


def find_files(dataset: str) -> DatasetFiles | None:
    """The files that ``dataset`` names, with commas between several; None for a Hub id.

    Raises ``DatasetError`` for what is not there, empty, of several kinds or of none.
    """
    whole = Path(dataset).expanduser()
    names = [dataset] if whole.exists() else [name for name in map(str.strip, dataset.split(",")) if name]
    splits: dict[str, list[Path]] = {}
    for name in names:
        found = _named(name, alone=len(names) == 1)
        if found is None:
            return None
        for split, files in found.items():
            splits.setdefault(split, []).extend(files)
    return _of_one_kind(dataset, splits)


def _named(name: str, alone: bool) -> dict[str, list[Path]] | None:
    path = Path(name).expanduser()
    if path.is_file():
        return {"train": [path]}
    if path.is_dir():
        return _in_folder(path)
    if glob.has_magic(name):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [file for file in found if file.is_file() and kind_of(file.name)]
        if not files:
            raise DatasetError(f"{name} matches no file that can be read", _endings())
        return {"train": files}
    if path.exists():
        raise DatasetError(f"{name} is not a file", "name a file, a folder or a dataset on the Hub")
    if not alone or kind_of(name) or name.startswith((".", "/", "~")):
        raise DatasetError(f"{name} does not exist", "name a file that exists")
    return None


def _in_folder(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by split, as datasets tells splits by names; also one of save_to_disk."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    folder = Path(os.path.abspath(folder))
    if (folder / _SAVED).is_file():
        found = {part.name: list(part.iterdir()) for part in sorted(folder.iterdir()) if part.is_dir()}
    else:
        base = glob.escape(str(folder))
        try:
            patterns = get_data_patterns(base)
        except FileNotFoundError:
            patterns = {}
        found = {
            str(split): [Path(file) for file in files]
            for split, files in DataFilesDict.from_patterns(patterns, base_path=base).items()
        }
    splits = {}
    for split, files in found.items():
        data = {file for file in files if file.name not in _BESIDE and file.is_file() and kind_of(file.name)}
        if data:
            splits[split] = sorted(_within(folder, file) for file in data)
    if not splits:
        raise DatasetError(f"{folder} holds no file that can be read", _endings())
    return splits


def _within(folder: Path, file: Path) -> Path:
    """A file of ``folder``; raises ``DatasetError`` where it is a link to elsewhere."""
    try:
        return resolve_inside(folder, file.relative_to(folder).as_posix())
    except CheckpointError as error:
        raise DatasetError(
            f"{file.name} in {folder} is a link out of the folder",
            f"name the files themselves, as in '{folder.name}/*{file.suffix}'",
        ) from error


def _of_one_kind(dataset: str, splits: dict[str, list[Path]]) -> DatasetFiles:
    files = [file for listed in splits.values() for file in listed]
    unknown = next((file for file in files if not kind_of(file.name)), None)
    if unknown is not None:
        raise DatasetError(f"{unknown.name} has an ending that is not understood", _endings())
    full = {split: [file for file in listed if file.stat().st_size] for split, listed in splits.items()}
    full = {split: listed for split, listed in full.items() if listed}
    if not full:
        raise DatasetError(f"{dataset} is empty", "name a file that holds text")
    kinds: dict[str, str] = {}
    for listed in full.values():
        for file in listed:
            kinds.setdefault(_looked_up(file), file.name)
    if len(kinds) > 1:
        raise DatasetError(
            f"{dataset} holds files of several kinds: {', '.join(kinds.values())}",
            "name those of one kind, as in 'folder/*.jsonl'",
        )
    return DatasetFiles(kind=next(iter(kinds)), splits=full)


def _looked_up(file: Path) -> str:
    """How ``file`` is read: what ends in .json may hold one object a line."""
    packing = Path(file.name.lower()).suffix
    if packing == ".zst" and find_spec("zstandard") is None:
        raise DatasetError(f"{file.name} is packed by Zstandard, which needs a package", "pip install zstandard")
    kind = kind_of(file.name)
    assert kind is not None, "checked before"
    if kind == "json":
        with _opened(file, "rt", encoding=text_encoding(file), errors="replace") as text:
            return "lines" if is_json_line(next((line for line in text if line.strip()), "")) else "json"
    return kind


def text_encoding(file: Path) -> str:
    """UTF-16 where a file begins like it, else UTF-8, with a mark at its beginning or without."""
    with _opened(file, "rb") as opened:
        head = opened.read(_HEAD)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) > 3 and not any(head[first::2]) and all(head[1 - first :: 2]):
            return encoding
    return "utf-8-sig"


def _opened(file: Path, mode: str, **options: Any) -> Any:
    import fsspec

    return fsspec.open(str(file), mode, compression=_PACKED.get(Path(file.name.lower()).suffix), **options)


def check_split(dataset: str, split: str, known: Iterable[str]) -> list[str]:
    """The splits that ``split`` names, as in train, train[:10%] and train+test.

    Raises ``DatasetError`` with those there are where one is not ``known``.
    """
    names, asked = [str(name) for name in known], [part.split("[")[0].strip() for part in split.split("+")]
    if asked == ["all"]:
        return names
    missing = next((name for name in asked if name not in names), None)
    if missing is not None:
        raise DatasetError(
            f"{dataset} has no split {missing!r}, but {listed(names)}",
            "leave --split out" if names == ["train"] else f"pass --split with one of: {listed(names)}",
        )
    return asked


def column_names(files: DatasetFiles) -> list[str] | None:
    """The columns of a kind of file whose beginning names them; None for others."""
    if files.kind in ("csv", "tsv"):
        import pandas

        options: dict[str, Any] = {"sep": separator(files.kind), "encoding": text_encoding(files.first)}
        return [str(name) for name in pandas.read_csv(files.first, nrows=0, **options).columns]
    if files.kind == "parquet":
        from pyarrow.parquet import read_schema

        return list(read_schema(files.first).names)
    return None


def separator(kind: str) -> str:
    """What stands between the cells of a table of text."""
    return "\t" if kind == "tsv" else ","


def listed(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _endings() -> str:
    return f"these endings are read: {', '.join(KINDS)}, and with {', '.join(_PACKED)} behind"
