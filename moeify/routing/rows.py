"""The rows of a dataset, of files here or on the Hub, as the library datasets reads them."""

from __future__ import annotations

import errno
import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeify.errors import DatasetError, MissingExtraError, MoeifyError
from moeify.routing.config import DataConfig
from moeify.routing.dataset_files import (
    DatasetFiles,
    check_split,
    column_names,
    find_files,
    kind_of,
    listed,
    separator,
    text_encoding,
)
from moeify.routing.json_lines import JsonLines

Needed = Callable[[list[str]], list[str]]
"""Chooses from the columns that a table has those that are read."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_LINES = {"sample_by": "line", "encoding": "utf-8-sig"}


def open_rows(config: DataConfig, needed: Needed) -> Any:
    """Rows of the split: of datasets, or ``JsonLines``; of tables only the columns that ``needed`` chooses.

    Raises ``DatasetError``.
    """
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "train") from error
    with explained(config):
        files = find_files(config.dataset)
        builder, lines = _of_hub(config, needed) if files is None else _of_files(config, files, needed)
        if known := builder.info.splits or builder.config.data_files:  # before anything is downloaded
            check_split(config.dataset, config.split, known)
        if config.streaming:
            rows = builder.as_streaming_dataset(split=config.split)
        else:
            builder.download_and_prepare()
            check_split(config.dataset, config.split, builder.info.splits)
            rows = builder.as_dataset(split=config.split)
        if lines:
            return JsonLines(rows, config.dataset)
        return rows.select_columns(needed(rows.column_names)) if rows.column_names else rows


def _of_files(config: DataConfig, files: DatasetFiles, needed: Needed) -> tuple[Any, bool]:
    """How datasets reads files, and whether as lines of JSON."""
    import datasets

    asked = check_split(config.dataset, config.split, files.splits)
    # datasets takes names for patterns.
    chosen = {name: [glob.escape(str(file)) for file in files.splits[name]] for name in asked}
    kind, options = files.kind, dict[str, Any](data_files=chosen)
    kept = needed(column_names(files) or [])
    if kind in ("text", "lines"):
        options |= _LINES | {"encoding": text_encoding(files.first)}
    if kind == "text":
        options["sample_by"] = "paragraph"
    if kind == "json" and text_encoding(files.first).startswith("utf-16"):
        raise _not_utf8(config.dataset, files.first, "UTF-16")
    if kind == "parquet":
        options["columns"] = kept
    if kind in ("csv", "tsv"):
        # Guessed types turn 1 into 1.0, 007 into 7, and the words null and NA into empty cells.
        options["features"] = datasets.Features({name: datasets.Value("string") for name in kept})
        options |= {"usecols": kept, "keep_default_na": False, "na_values": [""]}
        options |= {"sep": separator(kind), "encoding": text_encoding(files.first)}
    module = {"lines": "text", "tsv": "csv"}.get(kind, kind)
    return datasets.load_dataset_builder(module, **options), kind == "lines"


def _of_hub(config: DataConfig, needed: Needed) -> tuple[Any, bool]:
    """The same for a dataset of the Hub, named with its configuration behind a colon or not."""
    import datasets

    name, _, part = config.dataset.partition(":")
    try:
        builder = datasets.load_dataset_builder(name, part or None)
    except ValueError as error:
        names = datasets.get_dataset_config_names(name)
        if part in names or (not part and len(names) < 2):
            raise
        said = f"no configuration {part!r}" if part else f"{len(names)} configurations, and none is named"
        raise DatasetError(f"{name} has {said}", f"pass --dataset {name}:NAME with one of: {listed(names)}") from error
    found = builder.config.data_files or {}
    if found and all(kind_of(Path(file).name) == "lines" for files in found.values() for file in files):
        # Of a table, all rows must have the same columns and types, also in columns that nobody reads.
        chosen = {split: list(files) for split, files in found.items()}
        return datasets.load_dataset_builder("text", data_files=chosen, **_LINES), True
    if hasattr(builder.config, "columns") and builder.info.features:
        columns = needed(list(builder.info.features))
        builder = datasets.load_dataset_builder(name, part or None, columns=columns)
    return builder, False


@contextmanager
def explained(config: DataConfig) -> Iterator[None]:
    """Keep datasets quiet, and turn its many exceptions into one."""
    try:
        from datasets.utils import logging
    except ModuleNotFoundError:
        yield
        return
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what went wrong is said once, below
    try:
        yield
    except MoeifyError:
        raise
    except Exception as error:  # datasets raises its own, pyarrow's, pandas' and the Hub's
        raise _unreadable(config, error) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _unreadable(config: DataConfig, error: Exception) -> DatasetError:
    """What a foreign exception means for a user, and what helps."""
    cause = error.__cause__ or error
    reason = (str(cause).splitlines() or [type(cause).__name__])[0]
    path = Path(config.dataset).expanduser()
    if isinstance(cause, OSError) and (cause.errno in _NO_ROOM or _cache() in str(cause)):
        return DatasetError(
            f"datasets cannot keep {config.dataset} in its cache: {reason}",
            "set HF_DATASETS_CACHE to a folder with room",
        )
    if isinstance(cause, UnicodeError):
        return _not_utf8(config.dataset, path, None, reason)
    hint = "name files, a folder or a glob, or the id of a dataset on the Hub"
    if path.exists():
        hint = f"mend the file, whose content should be what {path.suffix or 'its ending'} says"
        if path.is_file() and kind_of(path.name) in ("json", "lines"):
            hint = "write one JSON object a line, and name the file .jsonl"
    return DatasetError(f"cannot read {config.dataset}: {reason}", hint)


def _cache() -> str:
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


def _not_utf8(dataset: str, path: Path, encoding: str | None, reason: str = "") -> DatasetError:
    said = f"it is {encoding}, not UTF-8" if encoding else f"it is not UTF-8: {reason}"
    return DatasetError(
        f"cannot read {dataset}: {said}",
        f"save the file as UTF-8: iconv -f {encoding or 'latin1'} -t utf-8 {path.name} > utf8-{path.name}",
    )
