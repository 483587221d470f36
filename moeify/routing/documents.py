"""Texts and their domains, from a local file or a dataset on the Hub."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from moeify.errors import DatasetError, MissingExtraError, MoeifyError
from moeify.routing.config import DataConfig
from moeify.routing.json_lines import JsonLines

_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_WHOLE_FILE = {"split": "train", "streaming": False}
_SHUFFLE_BUFFER = 1000
_LOOKED_AT = 100
_NO_TEXT = (
    "write each row's text into a column of its own and name it with --text-column:"
    " of a conversation, what tokenizer.apply_chat_template(messages, tokenize=False) gives"
)


def read_documents(config: DataConfig) -> Iterator[tuple[str, str | None]]:
    """Texts in seeded random order, each with its domain where a column names one.

    Empty texts are left out. Raises ``DatasetError`` for a file or id that cannot be read, a
    missing column, or a value that is no text.
    """
    with _explained(config):
        rows = _open(config)
    for option in ("text", "domain"):
        _check_column(rows, config, option)
    # Many datasets are sorted, and only a first part of them may be read.
    shuffling = {"buffer_size": _SHUFFLE_BUFFER} if config.streaming else {}
    rows = iter(rows.shuffle(seed=config.seed, **shuffling))
    for _ in range(config.max_samples) if config.max_samples is not None else iter(int, 1):
        with _explained(config):
            row = next(rows, None)
        if row is None:
            return
        text = _text(row.get(config.text_column), config)
        if text.strip():
            yield text, None if config.domain_column is None else _domain(row, config.domain_column)


def _check_column(rows: Any, config: DataConfig, option: str) -> None:
    """Raise ``DatasetError`` where ``rows`` lack the column that --text-column or another names."""
    column = config.text_column if option == "text" else config.domain_column
    with _explained(config):
        if column is None or _has(rows, column):
            return
        found: dict[str, Any] = {}
        for row in islice(rows, _LOOKED_AT):
            found |= {name: value for name, value in row.items() if value is not None}
    if option == "domain":
        found.pop(config.text_column, None)
    kinds: Any = str if option == "text" else (str, int, float)
    fitting = [name for name, value in found.items() if isinstance(value, kinds)]
    raise DatasetError(
        f"{config.dataset} has no column {column!r}",
        f"pass --{option}-column with one of: {', '.join(fitting)}"
        if fitting
        else _NO_TEXT
        if option == "text"
        else f"leave --{option}-column out",
    )


def _has(rows: Any, column: str) -> bool:
    if isinstance(rows, JsonLines):
        return any(column in row for row in rows)
    names = rows.column_names
    return column in (next(iter(rows), {}) if names is None else names)


def _open(config: DataConfig) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "train") from error
    path = Path(config.dataset).expanduser()
    options: dict[str, Any] = {"split": config.split, "streaming": config.streaming}
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise DatasetError(f"{path.name} has an ending that is not understood", f"one of: {', '.join(_BUILDERS)}")
        if path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty", "name a file that holds text")
        return _open_file(path, options)
    if path.exists() or config.dataset.startswith((".", "/", "~")):
        raise DatasetError(f"{config.dataset} is not a file", "name a file or a dataset on the Hub")
    if path.suffix in _BUILDERS:
        raise DatasetError(f"{config.dataset} does not exist", "name a file that exists")
    return datasets.load_dataset(config.dataset, **options)


def _open_file(path: Path, options: dict[str, Any]) -> Any:
    import datasets

    builder, whole = _BUILDERS[path.suffix], options == _WHOLE_FILE
    if builder == "json" and whole and (rows := JsonLines.of(path)) is not None:
        return rows
    if builder == "text":
        options["sample_by"] = "paragraph"
    if builder == "csv":
        # Guessed types turn 1 into 1.0, 007 into 7, and the words null and NA into empty cells.
        import pandas

        names = pandas.read_csv(path, nrows=0).columns
        options["features"] = datasets.Features({name: datasets.Value("string") for name in names})
        options |= {"keep_default_na": False, "na_values": [""]}
    return datasets.load_dataset(builder, data_files=str(path), **options)


def _text(text: Any, config: DataConfig) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DatasetError(
            f"column {config.text_column!r} of {config.dataset} holds {type(text).__name__}, not text", _NO_TEXT
        )
    # JSON can spell half of a character that takes two.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _domain(row: dict[str, Any], column: str) -> str | None:
    """What a domain's cell says; None where it is empty."""
    value = row.get(column)
    if isinstance(value, float):  # also whole numbers are, in columns with empty cells
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None or not str(value).strip() else str(value)


@contextmanager
def _explained(config: DataConfig) -> Iterator[None]:
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
    hint = "name a .txt, .jsonl, .json, .csv or .parquet file, or the id of a dataset on the Hub"
    if path.is_file():
        hint = f"mend the file, whose content should be what {path.suffix} says"
        if not config.split.startswith("train"):
            reason = f"a file is one split, train, and has no {config.split!r}"
            hint = "leave --split out"
        elif isinstance(cause, UnicodeError):
            hint = "save the file as UTF-8"
        elif _BUILDERS.get(path.suffix) == "json":
            hint = "write one JSON object a line, and leave --streaming out"
    return DatasetError(f"cannot read {config.dataset}: {reason}", hint)
