"""Pushes through hf-xet, the Hub's storage of deduplicated chunks, with its real client."""

import json

import pytest

import moeify

from .models import contents, mixture
from .stand_in import TOKEN
from .xet import STORAGE_TOKEN, XetStorage

LARGE, ROUTERS = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixture(tmp_path_factory.mktemp("xet") / "moe")


@pytest.fixture
def xet(hub, client):
    client.xet = True
    hub.xet = XetStorage()
    return hub.xet


def test_second_push_through_xet_sends_the_routers_alone(hub, client, xet, folder, tmp_path):
    xet.announce(folder)
    client.moeify("push", folder, "user/moe")
    assert len(hub.requests("POST", "/commit/")) == 1
    assert not hub.requests("PUT", "") + hub.requests("POST", "lfs")
    stored = hub.repositories["user/moe"].files()
    assert {name: stored[name] for name in (LARGE, ROUTERS)} == {
        name: data for name, data in contents(folder).items() if name in (LARGE, ROUTERS)
    }
    assert xet.chunk_bytes > 0.5 * (folder / LARGE).stat().st_size
    first, mark = hub.bytes_in(), len(hub.exchanges)
    moeify.attach(folder, tmp_path / "warm", router="normal")
    xet.announce(tmp_path / "warm")
    report = json.loads(client.moeify("push", tmp_path / "warm", "user/moe", "--json"))
    assert report["files_uploaded"] == 3
    assert hub.bytes_in(mark) < first / 100
    routers = (tmp_path / "warm" / ROUTERS).read_bytes()
    assert hub.repositories["user/moe"].files()[ROUTERS] == routers
    assert not any(token in text for token in (TOKEN, STORAGE_TOKEN) for text in client.printed)


def test_a_server_without_xet_is_named_with_the_way_around(hub, client, xet, folder):
    hub.xet = None
    said = client.refused("push", folder, "user/moe")
    assert f"uploading {LARGE} to user/moe failed" in said
    assert "404" in said
    assert "HF_HUB_DISABLE_XET=1" in said
    assert TOKEN not in said
    client.xet = False
    client.moeify("push", folder, "user/moe")
    assert ROUTERS in hub.repositories["user/moe"].files()


def test_storage_that_fails_between_two_files(hub, client, xet, folder):
    xet.announce(folder)
    hub.fail("POST", "/v1/shards", status=500)
    hub.fail("GET", "xet-write-token", status=403)
    said = client.refused("push", folder, "user/moe")
    assert "403" in said
    assert "nothing is up yet" in said
    client.moeify("push", folder, "user/moe")
    assert len(hub.requests("POST", "/v1/shards")) == 3
    assert ROUTERS in hub.repositories["user/moe"].files()
