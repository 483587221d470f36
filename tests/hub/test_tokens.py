"""Tokens come from huggingface_hub's own login, and no output, log or file ever shows one."""

from pathlib import Path

import pytest

from .models import mixture
from .stand_in import OUTSIDER, TOKEN

EXPIRED = "hf_ExpiredTokenOfTheUser"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixture(tmp_path_factory.mktemp("tokens") / "moe")


def shown(hub, client, place: Path) -> list[bytes]:
    """Everything that was printed, published, or written below ``place``."""
    published = [data for repo in hub.repositories.values() for data in repo.files().values()]
    written = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    return [*published, *written, *(text.encode() for text in client.printed)]


def test_no_token_is_printed_or_stored(hub, client, folder, tmp_path):
    client.moeify("push", folder, "user/moe")
    for client.token in (OUTSIDER, EXPIRED):
        client.refused("push", folder, "user/new")
    assert {TOKEN, OUTSIDER, EXPIRED} <= {exchange.token for exchange in hub.exchanges}
    for token in (TOKEN, OUTSIDER, EXPIRED):
        assert not any(token.encode() in data for data in shown(hub, client, tmp_path))


def test_tracebacks_and_logs_show_none(hub, client, folder, tmp_path, monkeypatch):
    """Every failure with its whole chain, and the client's own log of every request."""
    monkeypatch.setenv("MOEIFY_DEBUG", "1")
    monkeypatch.setenv("HF_DEBUG", "1")
    client.moeify("push", folder, "user/moe")
    failures = (("GET", "/tree/"), ("POST", "lfs/objects/batch"), ("POST", "/commit/"))
    for request in failures:
        hub.objects.clear()
        hub.add("user/empty", {"README.md": b"soon"})
        hub.fail(*request, status=403)
        assert client.run("-m", "moeify", "push", folder, "user/empty").returncode == 1
        assert "Traceback" in client.printed[-1]
        assert "curl" in client.printed[-1]
    assert not any(fault.times for fault in hub.faults)
    client.token = EXPIRED
    assert client.run("-m", "moeify", "upcycle", "user/moe", "out").returncode == 1
    for token in (TOKEN, EXPIRED):
        assert not any(token.encode() in data for data in shown(hub, client, tmp_path))


def test_the_login_of_the_client_is_used(hub, client, folder, tmp_path):
    """As `hf auth login` leaves it."""
    client.token = None
    assert "hf auth login" in client.refused("push", folder, "user/moe")
    login = client.home / "hf" / "token"
    login.parent.mkdir(parents=True, exist_ok=True)
    login.write_text(TOKEN)
    client.moeify("push", folder, "user/moe", "--json")
    assert "moeify.json" in hub.repositories["user/moe"].files()
    login.unlink()
    assert not any(TOKEN.encode() in data for data in shown(hub, client, tmp_path))
