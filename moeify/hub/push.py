"""Publishing a checkpoint: compare, upload what is new, commit once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.hub_errors import hub_errors
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, HubError, MoeifyError
from moeify.hub.config import PushConfig, check_repo_id
from moeify.hub.listing import LocalFile, local_files
from moeify.hub.plan import PushPlan, plan_push
from moeify.hub.remote import Remote, find_problem, look
from moeify.progress import stage

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """What a push did. ``bytes_uploaded`` counts the files that were new or had changed."""

    checkpoint: str
    repo_id: str
    url: str
    commit: str
    pull_request: str | None
    files: int
    files_uploaded: int
    files_removed: int
    bytes_total: int
    bytes_uploaded: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify push --json``."""
        return {"schema": "moeify.push/1", **asdict(self)}


def push(
    checkpoint: str | Path,
    repo_id: str,
    config: PushConfig | None = None,
    *,
    on_plan: Callable[[PushPlan], None] | None = None,
    **options: Any,
) -> PushReport:
    """Publish the checkpoint folder ``checkpoint`` as ``repo_id`` on the Hugging Face Hub.

    Args:
        checkpoint: a folder with config.json and safetensors weights.
        repo_id: ``user/name``; the repository is created where it does not exist.
        config: the options; ``options`` override single fields, as in ``private=True``.
        on_plan: called with what will be uploaded, before anything is sent.

    Only files that the repository lacks are sent, all in one commit. The token is the one that
    huggingface_hub finds. Raises ``HubError`` when the Hub refuses, or when the repository holds a
    different model and ``config.yes`` is not set; a failure on the way says what arrived, and
    running it again sends only the rest.
    """
    started = time.perf_counter()
    config = replace(config or PushConfig(), **options)
    check_repo_id(repo_id)
    opened = Checkpoint.open(_folder(checkpoint))
    check_login()
    from huggingface_hub import HfApi

    api = HfApi(library_name="moeify")
    local, left_out = local_files(opened, repo_id)

    def compare() -> tuple[PushPlan, Remote | None]:
        branch = config.revision or _MAIN
        remote = look(api, repo_id, branch)
        files = None if remote is None else remote.files
        problem = find_problem(api, repo_id, opened.folder, remote)
        plan = plan_push(repo_id, branch, local, files, left_out, problem)
        return plan, remote

    plan, remote = compare()
    if on_plan is not None:
        on_plan(plan)
    _check_allowed(plan, remote, config)
    if remote is None:
        # Somebody may make it, or fill it, just now: what is there by then is compared as well.
        _create(api, plan, config)
        plan, remote = compare()
        _check_allowed(plan, remote, config)
    if remote is None:
        raise HubError(
            f"{repo_id} exists, but the Hub does not show it to this account",
            "run the command again, or use a token that may read it",
        )
    url, commit, pull_request = _send(api, plan, config, remote)
    return PushReport(
        checkpoint=str(checkpoint),
        repo_id=repo_id,
        url=url,
        commit=commit,
        pull_request=pull_request,
        files=len(local),
        files_uploaded=len(plan.uploads),
        files_removed=len(plan.removed),
        bytes_total=plan.total_bytes,
        bytes_uploaded=plan.upload_bytes,
        seconds=time.perf_counter() - started,
    )


def _folder(checkpoint: str | Path) -> Path:
    folder = Path(checkpoint).expanduser()
    if not os.path.isdir(folder):
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint folder",
            "push takes a local folder, such as the output of moeify upcycle",
            path=folder,
        )
    return folder


def check_login() -> None:
    """Raise ``HubError`` where no upload can work: in offline mode, or without a token."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE=1 forbids uploads", "unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise HubError("nobody is logged in at the Hugging Face Hub", "hf auth login")


def _check_allowed(plan: PushPlan, remote: Remote | None, config: PushConfig) -> None:
    if remote is not None and config.private and not remote.private:
        raise HubError(
            f"{plan.repo_id} exists already and is public",
            "make it private in its settings on the Hub, or leave --private out",
        )
    if config.create_pr and plan.branch != _MAIN and (remote is None or not remote.has_branch):
        raise HubError(
            f"{plan.repo_id} has no branch {plan.branch!r} to open a pull request for",
            "leave --revision out, or push the branch itself without --create-pr",
        )
    if plan.problem is not None and not (config.yes or config.create_pr):
        raise HubError(
            f"{plan.repo_id} holds a different model: {plan.problem}",
            "choose another name, open a pull request with --create-pr, or overwrite it with --yes",
        )


def _create(api: HfApi, plan: PushPlan, config: PushConfig) -> None:
    with hub_errors(plan.repo_id, "creating"):
        api.create_repo(plan.repo_id, private=config.private or None, exist_ok=True)


def _send(api: HfApi, plan: PushPlan, config: PushConfig, remote: Remote) -> tuple[str, str, str | None]:
    """Create the branch, upload, commit; returns URL, commit and pull request."""
    if not remote.has_branch:
        with hub_errors(plan.repo_id, "preparing"):
            api.create_branch(plan.repo_id, branch=plan.branch, exist_ok=True)
    url = f"{api.endpoint}/{plan.repo_id}"
    if plan.branch != _MAIN:
        url += f"/tree/{plan.branch}"
    if plan.is_empty:
        return url, remote.commit, None
    _upload(api, plan, config)
    info = _commit(api, plan, config, remote.commit)
    return info.pr_url or url, info.oid, info.pr_url


def _upload(api: HfApi, plan: PushPlan, config: PushConfig) -> None:
    """Send the weights one after the other, so that a failure can say which have arrived."""
    large = [[file] for file in plan.uploads if file.name.endswith(".safetensors")]
    small = [file for file in plan.uploads if not file.name.endswith(".safetensors")]
    done: list[LocalFile] = []
    with stage(f"uploading to {plan.repo_id}", plan.upload_bytes, "bytes") as uploading:
        for batch in [small, *large] if small else large:
            try:
                with hub_errors(plan.repo_id, f"uploading {batch[-1].name} to"):
                    api.preupload_lfs_files(
                        plan.repo_id,
                        [file.operation for file in batch],
                        revision=plan.branch,
                        create_pr=config.create_pr,
                        free_memory=False,
                    )
            except MoeifyError as error:
                raise _unfinished(plan, error, done) from error
            # What is small travels inside the commit, so only the weights are up by now.
            done += batch if batch is not small else []
            uploading.advance(sum(file.nbytes for file in batch))


def _unfinished(plan: PushPlan, error: MoeifyError, done: list[LocalFile]) -> HubError:
    arrived = "nothing is up yet"
    if done:
        names = ", ".join(file.name for file in done[-3:])
        nbytes = sum(file.nbytes for file in done)
        sizes = f"{nbytes / 1e6:.1f} of {plan.upload_bytes / 1e6:.1f} MB"
        up = f"{len(done)} of {len(plan.uploads)} files ({sizes}) are up"
        arrived = f"{up}, the last {names}, but not yet visible"
    return HubError(
        f"{error.message}; {arrived}",
        "run the same command again: what is up is not sent again" if done else error.hint,
    )


def _commit(api: HfApi, plan: PushPlan, config: PushConfig, parent: str) -> Any:
    from huggingface_hub import CommitOperationDelete

    removals = [CommitOperationDelete(path_in_repo=name) for name in plan.removed]
    try:
        with hub_errors(plan.repo_id, "committing to"):
            return api.create_commit(
                plan.repo_id,
                operations=[*(file.operation for file in plan.uploads), *removals],
                commit_message="Upload with moeify",
                revision=plan.branch,
                create_pr=config.create_pr,
                # What somebody else committed since the comparison must not be overwritten.
                parent_commit=parent,
            )
    except MoeifyError as error:
        weights = [file for file in plan.uploads if file.name.endswith(".safetensors")]
        raise _unfinished(plan, error, weights) from error
