"""Branches and pull requests: what is made, what is used, what stays as it was."""

import json

import pytest

import moeify

from .models import mixture

ROUTERS = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixture(tmp_path_factory.mktemp("branches") / "moe")


def test_pull_request_leaves_the_branch_alone(hub, client, folder):
    hub.add("other/moe", {"config.json": b"{}", "model.safetensors": b"x" * 64})
    report = json.loads(client.moeify("push", folder, "other/moe", "--create-pr", "--json"))
    repository = hub.repositories["other/moe"]
    assert report["url"] == report["pull_request"] == f"{hub.url}/other/moe/discussions/1"
    assert repository.files()["model.safetensors"] == b"x" * 64
    assert ROUTERS in repository.files("refs/pr/1")


def test_branch_is_made_where_it_is_missing(hub, client, folder):
    client.moeify("push", folder, "user/moe", "--revision", "warm")
    repository = hub.repositories["user/moe"]
    assert ROUTERS not in repository.files()
    assert ROUTERS in repository.files("warm")
    mark = len(hub.exchanges)
    client.moeify("push", folder, "user/moe", "--revision", "warm")
    assert not [e for e in hub.exchanges[mark:] if e.method in ("POST", "PUT") and e.bytes_in > 9]


def test_a_pull_request_is_pushed_to_again(hub, client, folder, tmp_path):
    """It is there, so nothing has to be made; the Hub would not make a branch of that name."""
    hub.add("user/moe", {"README.md": b"hello"})
    client.moeify("push", folder, "user/moe", "--create-pr")
    moeify.attach(folder, tmp_path / "again", router="normal")
    client.moeify("push", tmp_path / "again", "user/moe", "--revision", "refs/pr/1")
    assert not hub.requests("POST", "/branch/")
    repository = hub.repositories["user/moe"]
    assert repository.files("refs/pr/1")[ROUTERS] == (tmp_path / "again" / ROUTERS).read_bytes()
    assert ROUTERS not in repository.files()


@pytest.mark.parametrize("exists", [True, False])
def test_a_pull_request_needs_its_branch(hub, client, folder, exists):
    if exists:
        hub.add("user/moe", {"README.md": b"hello"})
    said = client.refused("push", folder, "user/moe", "--create-pr", "--revision", "new")
    assert "no branch 'new'" in said
    assert not hub.requests("POST", "") + hub.requests("PUT", "")
