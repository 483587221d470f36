"""Dense models, mixtures and pruned ones on the same tasks."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.regular import read_text
from moeify.checkpoint.replacing import replacing
from moeify.checkpoint.source import Source, resolve_source
from moeify.checkpoint.staging import output_errors
from moeify.errors import ConfigError, OutputError
from moeify.evaluation.config import EvaluateConfig
from moeify.evaluation.harness import check_harness, named_tasks, results
from moeify.evaluation.report import EvaluateReport, side_by_side
from moeify.families.registry import is_encoder_type
from moeify.provenance.base_card import MAX_CARD_BYTES
from moeify.provenance.card import CARD_FILE
from moeify.provenance.markdown import inline, table
from moeify.routing.data import tokenizer_for
from moeify.routing.loading import load_model
from moeify.routing.running import device_for

_BEGIN, _END = "<!-- moeify evaluate: begin -->", "<!-- moeify evaluate: end -->"


def evaluate(
    checkpoints: Sequence[str | Path], config: EvaluateConfig | None = None, **options: Any
) -> EvaluateReport:
    """Run every one of ``checkpoints``, folders or Hub ids, on the tasks of ``config``.

    Models are loaded one after the other, as ``verify`` loads them: no code out of a folder runs.
    Scores and standard errors are lm-evaluation-harness's own. Raises ``MoeifyError`` before the
    first model is loaded where a task is unknown or a checkpoint cannot answer.
    """
    started = time.perf_counter()
    config = replace(config, **options) if config is not None else EvaluateConfig(**options)
    check_harness()
    sources, device = _checked(checkpoints, config), device_for(config.device)
    manager, tasks = named_tasks(config)
    found = []
    for source, tokenizer in sources:
        model = load_model(source.folder, config.dtype)
        model.to(device)
        found.append(results(model, tokenizer, source.name, config, manager, tasks))
        del model
    report = EvaluateReport(
        checkpoints=tuple(source.name for source, _ in sources),
        metrics=side_by_side(found),
        harness=version("lm_eval"),
        limit=config.limit,
        seconds=time.perf_counter() - started,
    )
    if config.output is not None:
        with output_errors(config.output), replacing(config.output) as partial:
            partial.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    for source, _ in sources if config.card else ():
        _write_into_card(source.folder / CARD_FILE, report)
    return report


def _checked(checkpoints: Sequence[str | Path], config: EvaluateConfig) -> list[tuple[Source, Any]]:
    """The checkpoints with their tokenizers, and everything that can be known of them and the output."""
    if not checkpoints:
        raise ConfigError("no checkpoint is named", "name one or several, folders or Hub ids")
    if config.output is not None:
        _check_output(config.output, config.force)
    found = []
    for checkpoint in checkpoints:
        source = resolve_source(checkpoint)
        opened = Checkpoint.open(source.folder)
        if is_encoder_type(opened.config):
            raise ConfigError(
                f"{source.name} is an encoder, and lm-evaluation-harness asks models to write",
                "compare encoders on your own task, or with MTEB: see docs/evaluate.md",
            )
        if config.card and source.revision is not None:
            raise ConfigError(f"{source.name} has its card on the Hub", "leave --card out, or name a folder")
        found.append((source, tokenizer_for(source.folder)))
    return found


def _check_output(path: Path, force: bool) -> None:
    if os.path.lexists(path) and not force:
        raise OutputError(f"{path} exists", "replace it with --force, or choose another name")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written", "name a file in a folder that exists")


def _write_into_card(path: Path, report: EvaluateReport) -> None:
    """Put the figures into a model card, in place of those that were there before."""
    text = read_text(path, MAX_CARD_BYTES) if os.path.lexists(path) else ""
    rows = [(m.task, m.metric, *map(str, m.scores)) for m in report.metrics]
    limit = "" if report.limit is None else f" The first {report.limit} questions of each task only."
    section = "\n".join(
        (
            _BEGIN,
            "## Evaluation",
            "",
            f"By lm-evaluation-harness {report.harness}, with its standard errors.{limit}",
            "",
            table(rows, ("task", "metric", *map(inline, report.checkpoints))),
            _END,
        )
    )
    before = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if before.search(text):
        text = before.sub(lambda _: section, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    with output_errors(path), replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
