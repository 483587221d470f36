"""``moeify evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from moeify.cli._output import Output
from moeify.cli._text import duration
from moeify.evaluation.config import EvaluateConfig

EXAMPLES = (
    "moeify evaluate ./dense ./moe ./pruned --tasks hellaswag,arc_easy",
    "moeify evaluate ./moe --tasks ./my-task.yaml --limit 100 --output scores.json",
    "moeify evaluate ./dense ./moe --tasks lambada_openai --card",
)
FIRST = ("tasks", "num_fewshot", "limit", "output", "card")


def command(
    out: Output,
    config: EvaluateConfig,
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Language models to compare: folders or Hub ids.")
    ],
) -> None:
    """Compare language models on the tasks of lm-evaluation-harness, with standard errors."""
    from moeify.evaluation.evaluate import evaluate

    report = evaluate(checkpoints, config)
    out.document(report.to_dict())
    rows = [(m.task, m.metric, *map(str, m.scores)) for m in report.metrics]
    out.grid("scores, with standard errors", ("task", "metric", *report.checkpoints), rows, left=2)
    out.notice(f"lm-evaluation-harness {report.harness}, {duration(report.seconds)}")
    if config.output is not None:
        out.hint(f"the document is in {config.output}")
