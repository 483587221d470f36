"""Where a warm-up's losses are logged besides the terminal, by the Trainer's own integrations."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from moeify.errors import ConfigError
from moeify.routing.running import first_line
from moeify.warming.config import WarmupConfig

_RUNS = "runs"  # where TensorBoard is usually pointed at
_PROJECT = "moeify"


def check_reporting(config: WarmupConfig) -> None:
    """Raise ``ConfigError`` where the package that ``report_to`` names is not installed, or does not work."""
    name = config.report_to
    if name == "none":
        return
    try:
        import_module(name)
    except Exception as error:  # whatever a package that is out of date says
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "is not installed" if missing else f"cannot be imported: {first_line(error)}"
        raise ConfigError(
            f"--report-to {name} needs the package {name!r}, which {why}", f"pip install -U {name}"
        ) from error


def reporting_options(config: WarmupConfig, name: str) -> dict[str, Any]:
    """The ``TrainingArguments`` of a run called ``name`` that say what is logged and where."""
    if config.report_to == "none":
        return {"report_to": [], "logging_strategy": "no"}
    return {
        "report_to": [config.report_to],
        "logging_strategy": "steps",
        "logging_steps": 1,
        "run_name": name,
        "project": _PROJECT,
    }


def place_logs(callbacks: list[Any], name: str) -> None:
    """Have TensorBoard's files of a run called ``name`` where they outlive the run's own folder."""
    for callback in callbacks:
        if getattr(callback, "logging_dir", "") is None:  # not set by TENSORBOARD_LOGGING_DIR
            callback.logging_dir = str(Path(_RUNS, name))
