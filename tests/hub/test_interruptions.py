"""Servers that fail and connections that break, in mid-upload and in mid-download."""

import hashlib

import pytest

from .models import contents, dense, mixture

LARGE, ROUTERS = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixture(tmp_path_factory.mktemp("interruptions") / "moe")


def test_a_server_error_that_passes_is_overcome(hub, client, folder):
    hub.fail("PUT", "/objects/", status=500)
    hub.fail("POST", "/preupload/", status=503)
    client.moeify("push", folder, "user/moe")
    assert [e.status for e in hub.requests("PUT", "/objects/")] == [500, 200, 200]
    assert hub.repositories["user/moe"].files()[LARGE] == (folder / LARGE).read_bytes()


def test_a_connection_dropped_in_mid_upload_is_overcome(hub, client, folder):
    hub.fail("PUT", "/objects/", after_bytes=50_000)
    client.moeify("push", folder, "user/moe")
    sent = hub.requests("PUT", "/objects/")
    assert [e.status for e in sent] == [0, 200, 200]
    assert sent[0].bytes_in == 50_000 < sent[1].bytes_in
    assert hub.repositories["user/moe"].files()[LARGE] == (folder / LARGE).read_bytes()


def test_what_is_up_after_a_failure_is_said_and_not_sent_again(hub, client, folder):
    hub.fail("POST", "/commit/", status=500)
    said = client.refused("push", folder, "user/moe")
    assert "the Hub answered 500" in said
    assert "2 of 11 files" in said
    assert ROUTERS in said
    assert "run the same command again" in said
    assert list(hub.repositories["user/moe"].files()) == [".gitattributes"]
    mark = len(hub.exchanges)
    client.moeify("push", folder, "user/moe")
    assert not [e for e in hub.exchanges[mark:] if e.method == "PUT"]
    assert hub.repositories["user/moe"].files()[LARGE] == (folder / LARGE).read_bytes()


def test_ctrl_c_in_mid_upload_says_how_to_finish(hub, client, folder, tmp_path):
    said = client.interrupted("push", folder, "user/moe", at=("PUT", "/objects/"))
    assert "nothing was published yet, and the same command sends what is missing" in said
    assert list(hub.repositories["user/moe"].files()) == [".gitattributes"]
    client.moeify("push", folder, "user/moe")
    assert ROUTERS in hub.repositories["user/moe"].files()
    hub.objects.clear()
    source, out = folder.with_name("moe-dense"), tmp_path / "out"
    command = ("upcycle", source, out, "--experts", 3, "--push-to", "user/late")
    said = client.interrupted(*command, at=("PUT", "/objects/"))
    assert f"{out} is complete, but not published\nhint: moeify push {out} user/late" in said
    client.moeify("push", out, "user/late")
    assert ROUTERS in hub.repositories["user/late"].files()


def test_a_failure_between_two_files_names_the_first(hub, client, folder):
    large = (folder / LARGE).read_bytes()
    hub.objects = {hashlib.sha256(large).hexdigest(): large}  # left from an earlier attempt
    hub.fail("PUT", "/objects/", status=400)
    said = client.refused("push", folder, "user/moe")
    assert f"uploading {ROUTERS} to user/moe" in said
    assert f"1 of 11 files ({len(large) / 1e6:.1f} of" in said
    assert LARGE in said
    client.moeify("push", folder, "user/moe")
    assert ROUTERS in hub.repositories["user/moe"].files()


def test_a_hub_that_cannot_be_reached(hub, client, folder, tmp_path):
    hub.url = "http://127.0.0.1:9"  # the discard port, where nobody listens
    assert "looking up user/moe failed" in client.refused("push", folder, "user/moe")
    assert "cannot be reached" in client.refused("upcycle", "user/dense", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_download_that_fails_is_completed_by_the_same_command(hub, client, tmp_path):
    files = contents(dense(tmp_path / "dense"))
    hub.add("org/dense", files)
    hub.fail("GET", "resolve/.*safetensors", status=503)
    said = client.refused("upcycle", "org/dense", tmp_path / "out", "--experts", 2)
    assert "the Hub answered 503" in said
    assert "run the command again" in said
    client.moeify("upcycle", "org/dense", tmp_path / "out", "--experts", 2)
    fetched = [e.path for e in hub.requests("GET", "/resolve/") if e.status == 200]
    assert len(fetched) == len(set(fetched)) == len(files)


COUNTED = """
import sys, moeify
seen = {}
with moeify.watch_progress(lambda stage: seen.update({stage.name: (stage.done, stage.total)})):
    moeify.upcycle("org/dense", sys.argv[1], num_experts=2)
print(*seen["downloading org/dense"])
"""


def test_ctrl_c_in_a_download_says_what_stays_and_bytes_are_counted(hub, client, tmp_path):
    files = contents(dense(tmp_path / "dense"))
    hub.add("org/dense", files)
    said = client.interrupted("upcycle", "org/dense", tmp_path / "out", at=("GET", "resolve/.*safetensors"))
    assert "what arrived of org/dense stays in the Hub's cache, and the same command fetches the rest" in said
    assert not (tmp_path / "out").exists()
    done, total = client.run("-c", COUNTED, tmp_path / "out").stdout.split()
    assert done == total and 0 < int(done) <= sum(map(len, files.values()))


def test_an_interrupted_download_is_resumed_by_range(hub, client, tmp_path):
    # The client goes on from the last whole chunk of 10 MiB that it has.
    notes = bytes(range(256)) * 45_000
    hub.add("org/dense", contents(dense(tmp_path / "dense")) | {"notes.txt": notes})
    hub.cut_after = {"notes.txt": len(notes) - 1000}
    client.moeify("upcycle", "org/dense", tmp_path / "out", "--experts", 2)
    cut, resumed = hub.requests("GET", "/notes.txt")
    assert (cut.range, cut.bytes_out) == (None, len(notes) - 1000)
    assert (resumed.range, resumed.bytes_out) == ("bytes=10485760-", len(notes) - 10485760)
    assert (tmp_path / "out" / "notes.txt").read_bytes() == notes
