"""What classes need beside the weights: config.json, their code, the tokenizer's class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from moeify.checkpoint.carry import TOKENIZER_CONFIG
from moeify.checkpoint.foreign_code import without_code
from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.reader import CONFIG_FILE, has_tokenizer
from moeify.families.values import Config
from moeify.modeling import REMOTE_CODE


def name_tokenizer_class(stage: Path, config: Config) -> None:
    """Say which tokenizer a model type of moeify's own has, where only the dense type told."""
    remote = REMOTE_CODE.get(str(config.get("model_type")))
    if remote is None or remote.tokenizer is None or not has_tokenizer(stage):
        return
    path = stage / TOKENIZER_CONFIG
    settings = read_json(path) if path.exists() else {}
    if not (settings.get("tokenizer_class") or config.get("tokenizer_class")):
        settings["tokenizer_class"] = remote.tokenizer
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_config(stage: Path, config: Config) -> None:
    """Write config.json and, for moeify's own classes, their code."""
    config = without_code(config)  # that of others is not carried over
    config.pop("transformers_weights", None)  # which names files of the source
    if remote := REMOTE_CODE.get(str(config.get("model_type"))):
        config["auto_map"] = dict(remote.auto_map)
        for path in remote.paths:
            shutil.copyfile(path, stage / path.name)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (stage / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
