"""From huggingface_hub's exceptions to one sentence and a hint, without tokens or signed links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from moeify.errors import HubError

_LOGIN = "hf auth login, or set HF_TOKEN to a token of that account"
_TOKEN = re.compile(r"hf_\w+")
_QUERY = re.compile(r"\?\S+")


@contextmanager
def hub_errors(repo_id: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Turn every failure to talk to the Hub about ``repo_id`` into ``HubError``.

    Args:
        doing: what was tried, as in "downloading".
        revision: the branch, tag or commit that was asked for.
    """
    from huggingface_hub import errors as hub

    # The HTTP library's own base class, whichever library this version of the client uses.
    network: type[Exception] = hub.HfHubHTTPError.__mro__[1]
    try:
        yield
    except (network, OSError, RuntimeError) as error:
        raise explain_hub_error(error, repo_id, doing, revision) from error
    except ValueError as error:  # malformed answers, names and metadata
        raise HubError(f"{doing} {repo_id} failed: {reason(error)}", "mend what it names, then try again") from error


def explain_hub_error(error: BaseException, repo_id: str, doing: str, revision: str | None = None) -> HubError:
    """What ``error`` means for a user who was ``doing`` something with ``repo_id``."""
    from huggingface_hub import errors as hub

    cause = error if _status(error) is not None else error.__cause__ or error
    status = _status(cause)
    if isinstance(cause, hub.GatedRepoError):
        return HubError(
            f"{repo_id} is gated on the Hub and this account has no access",
            f"ask for access at its page on the Hub, then: {_LOGIN}",
        )
    if isinstance(cause, hub.RevisionNotFoundError):
        return HubError(
            f"{repo_id} has no revision {revision!r} on the Hub",
            "leave --revision out, or name a branch, tag or full commit id that exists",
        )
    if status == 401 and "Invalid credentials" in str(cause):
        return HubError("the Hub does not accept this token", f"renew it: {_LOGIN}")
    if isinstance(cause, hub.RepositoryNotFoundError):
        return HubError(
            f"there is no folder {repo_id} here, and no such model on the Hub,"
            " or it is private and this account has no access",
            f"check the spelling; for a private model: {_LOGIN}",
        )
    if status == 403:
        return HubError(
            f"this account may not write to {repo_id}: {reason(cause)}",
            f"choose a repository of your own, or use a token that may write: {_LOGIN}",
        )
    if isinstance(error, hub.IncompleteSnapshotError):
        return HubError(
            f"only a part of {repo_id} is in the local cache, and the Hub cannot be reached",
            "connect and run the command again",
        )
    if status is None and isinstance(error, hub.LocalEntryNotFoundError | hub.OfflineModeIsEnabled):
        return HubError(
            f"{repo_id} is not in the local cache and the Hub cannot be reached",
            "connect once, or name a local folder; HF_HUB_OFFLINE=1 forbids downloads",
        )
    if "/xet-write-token/" in str(cause):
        return HubError(
            f"{doing} {repo_id} failed: {reason(cause)}",
            "run the command again; to a server without Xet storage, with HF_HUB_DISABLE_XET=1",
        )
    return HubError(f"{doing} {repo_id} failed: {reason(cause)}", "run the command again")


def reason(error: BaseException) -> str:
    """An error's first line without tokens, and without the part of links that signs them."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    status = _status(error)
    said = getattr(error, "server_message", None)
    if status is not None:
        text = f"the Hub answered {status}" + (f", {said.splitlines()[0]}" if said else "")
    else:
        text = lines[0] if lines else type(error).__name__
    return _QUERY.sub("", _TOKEN.sub("hf_***", text)).rstrip(".")


def _status(error: BaseException | None) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
