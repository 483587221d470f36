"""Publishing from the command line: ``moeify push``, and ``--push-to`` of the other commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from moeify.checkpoint.interruption import Kept, keeping
from moeify.cli._output import Output
from moeify.cli._text import size
from moeify.errors import HubError
from moeify.hub.config import PushConfig, check_repo_id

if TYPE_CHECKING:
    from moeify.hub.plan import PushPlan
    from moeify.hub.push import PushReport

_SHOWN_FILES = 12


def check_push_target(repo_id: str | None) -> None:
    """Refuse a ``--push-to`` that cannot work before the long work starts."""
    if repo_id is not None:
        check_repo_id(repo_id)
        from moeify.hub.push import check_login

        check_login()


def push_after(out: Output, folder: str, repo_id: str | None) -> None:
    """What ``--push-to`` does once ``folder`` is written; nothing where it was not given.

    The command's own document stays the only one on stdout.
    """
    if repo_id is None:
        return
    hint = f"moeify push {shlex.quote(folder)} {repo_id}"
    kept = Kept(what=f"{folder} is complete, but not published", command=hint)
    try:
        with keeping(lambda: kept):
            report = publish(out, folder, repo_id, PushConfig())
    except HubError as error:
        if error.hint and not error.hint.startswith("run the "):
            hint = f"{error.hint}; then {hint}"
        raise HubError(f"{folder} is complete, but {error.message}", hint) from error
    out.notice(f"pushed to {report.url}")


def publish(out: Output, folder: str | Path, repo_id: str, config: PushConfig) -> PushReport:
    """Push ``folder``, saying first what will be uploaded."""
    from moeify.hub.push import push

    return push(folder, repo_id, config, on_plan=lambda plan: _show_plan(out, plan))


def _show_plan(out: Output, plan: PushPlan) -> None:
    rows = [(f"+ {file.name}", size(file.nbytes)) for file in plan.new]
    rows += [(f"~ {file.name}", size(file.nbytes)) for file in plan.changed]
    if len(rows) > _SHOWN_FILES:
        rest = sum(file.nbytes for file in plan.uploads[_SHOWN_FILES:])
        rows = [*rows[:_SHOWN_FILES], (f"... {len(rows) - _SHOWN_FILES} more", size(rest))]
    rows += [(f"- {name}", "removed: not part of this checkpoint") for name in plan.removed]
    total = f"{size(plan.upload_bytes)} of {size(plan.total_bytes)} to upload"
    state = "a new repository" if plan.creates_repo else plan.branch
    title = f"{plan.repo_id} ({state}): {total}"
    out.table(title, rows)
    if out.as_json:  # stdout is for the document alone
        out.notice(title)
    if plan.left_out:
        out.warning(f"not published: {', '.join(plan.left_out[:5])}")
