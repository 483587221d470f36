"""The files that stand beside the weights: config, modeling code, record and card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from moeify.checkpoint.foreign_code import without_code
from moeify.checkpoint.reader import CONFIG_FILE
from moeify.families.base import Config
from moeify.modeling import REMOTE_CODE
from moeify.provenance.card import write_card
from moeify.provenance.record import Record

__all__ = ["write_companions", "write_config"]


def write_companions(stage: Path, config: Config, record: Record, base_folder: Path) -> None:
    """Write config.json, moeify.json, README.md and, for moeify's own classes, their code.

    The weights must lie in ``stage`` already. The card takes licence and languages from the one in
    ``base_folder``.
    """
    write_config(stage, config)
    record.write(stage)
    write_card(stage, without_code(config), record, base_folder)


def write_config(stage: Path, config: Config) -> None:
    """Write config.json and, for moeify's own classes, their code."""
    config = without_code(config)  # that of others is not carried over
    if remote := REMOTE_CODE.get(str(config.get("model_type"))):
        config["auto_map"] = dict(remote.auto_map)
        for path in remote.paths:
            shutil.copyfile(path, stage / path.name)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (stage / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
