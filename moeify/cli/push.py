"""``moeify push``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moeify.checkpoint.interruption import Kept, keeping
from moeify.cli._output import Output
from moeify.cli._pushing import publish
from moeify.cli._text import size
from moeify.hub.config import PushConfig

if TYPE_CHECKING:
    from moeify.hub.push import PushReport

EXAMPLES = (
    "moeify push ./bert-base-uncased-moe-e8-k2 me/bert-moe",
    "moeify push ./my-moe me/my-moe --private --revision warm",
    "moeify push ./my-moe team/moe --create-pr --json",
)
FIRST = ("private", "create_pr", "revision", "yes")


def command(
    out: Output,
    config: PushConfig,
    checkpoint: Annotated[str, typer.Argument(metavar="FOLDER", help="Checkpoint folder to publish.")],
    repo_id: Annotated[str, typer.Argument(help="Where on the Hub: user/name.")],
) -> None:
    """Publish a checkpoint on the Hugging Face Hub, sending only what is new."""
    with keeping(lambda: Kept(what="nothing was published yet, and the same command sends what is missing")):
        report = publish(out, checkpoint, repo_id, config)
    _show(out, report)


def _show(out: Output, report: PushReport) -> None:
    out.document(report.to_dict())
    rows = [
        ("url", report.url),
        ("commit", report.commit),
        (
            "uploaded",
            f"{report.files_uploaded} of {report.files} files,"
            f" {size(report.bytes_uploaded)} of {size(report.bytes_total)}",
        ),
        ("removed", f"{report.files_removed} stale files"),
        ("time", f"{report.seconds:.1f} s"),
    ]
    if not report.files_removed:
        rows.pop(3)
    verb = "pushed to" if report.files_uploaded or report.files_removed else "already up to date at"
    out.table(f"{report.checkpoint} {verb} {report.repo_id}", rows)
