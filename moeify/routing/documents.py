"""Texts and their domains, from a local file or a dataset on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeify.errors import DatasetError, MissingExtraError, MoeifyError
from moeify.routing.config import DataConfig

__all__ = ["read_documents"]

_BUILDERS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SHUFFLE_BUFFER = 1000


def read_documents(config: DataConfig) -> Iterator[tuple[str, str | None]]:
    """Texts in seeded random order, each with its domain where a column names one.

    Empty texts are left out. Raises ``DatasetError`` for a file or id that cannot be read, a
    missing column, or a value that is no text.
    """
    with _explained(config):
        rows = _open(config)
        columns = rows.column_names
    for column in (config.text_column, config.domain_column):
        if column is not None and columns is not None and column not in columns:
            option = "text" if column == config.text_column else "domain"
            raise DatasetError(
                f"{config.dataset} has no column {column!r}",
                f"pass --{option}-column with one of: {', '.join(columns)}",
            )
    # Many datasets are sorted, and only a first part of them may be read.
    shuffling = {"buffer_size": _SHUFFLE_BUFFER} if config.streaming else {}
    rows = iter(rows.shuffle(seed=config.seed, **shuffling))
    for _ in range(config.max_samples) if config.max_samples is not None else iter(int, 1):
        with _explained(config):
            row = next(rows, None)
        if row is None:
            return
        text = _text(row, config)
        if text.strip():
            yield text, None if config.domain_column is None else str(row[config.domain_column])


def _open(config: DataConfig) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "train") from error
    path = Path(config.dataset).expanduser()
    options: dict[str, Any] = {"split": config.split, "streaming": config.streaming}
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise DatasetError(
                f"{path.name} has an ending that is not understood",
                f"one of: {', '.join(_BUILDERS)}",
            )
        if path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty", "name a file that holds text")
        builder = _BUILDERS[path.suffix]
        if builder == "text":
            options["sample_by"] = "paragraph"
        return datasets.load_dataset(builder, data_files=str(path), **options)
    if path.exists() or config.dataset.startswith((".", "/", "~")):
        raise DatasetError(f"{config.dataset} is not a file", "name a file or a dataset on the Hub")
    if path.suffix in _BUILDERS:
        raise DatasetError(f"{config.dataset} does not exist", "name a file that exists")
    return datasets.load_dataset(config.dataset, **options)


def _text(row: dict[str, Any], config: DataConfig) -> str:
    text = row.get(config.text_column)
    if config.text_column not in row:
        raise DatasetError(
            f"{config.dataset} has no column {config.text_column!r}",
            f"pass --text-column with one of: {', '.join(row)}",
        )
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DatasetError(
            f"column {config.text_column!r} of {config.dataset} holds"
            f" {type(text).__name__}, not text",
            "pass --text-column with a column of text",
        )
    return text


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
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise DatasetError(
            f"cannot read {config.dataset}: {reason}",
            "name a .txt, .jsonl, .json, .csv or .parquet file, or the id of a dataset on the Hub",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
