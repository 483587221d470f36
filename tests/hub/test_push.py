"""What reaches the Hub, how often, and how much of it."""

import json
import shutil

import pytest

import moeify

from .models import contents, mixture
from .repositories import Repository
from .stand_in import TOKEN

ROUTERS = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixture(tmp_path_factory.mktemp("push") / "moe")


def test_everything_arrives_in_one_commit(hub, client, folder):
    printed = client.moeify("push", folder, "user/moe")
    repository = hub.repositories["user/moe"]
    assert len(hub.requests("POST", "/commit/")) == 1
    stored = repository.files()
    expected = contents(folder)
    card = expected.pop("README.md").replace(b"FOLDER_OR_REPO", b"user/moe")
    assert stored.pop("README.md") == card
    del stored[".gitattributes"]
    assert stored == expected
    assert not repository.private
    assert f"{hub.url}/user/moe" in printed
    assert ROUTERS in printed
    assert "a new repository" in printed


@pytest.mark.slow
def test_second_push_after_a_warm_up_sends_the_routers_and_the_card(hub, client, folder, tmp_path):
    client.moeify("push", folder, "user/moe")
    before, first, mark = hub.repositories["user/moe"].files(), hub.bytes_in(), len(hub.exchanges)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    sizes = ("--steps", 0, "--seq-len", 32, "--fit-tokens", 1024, "--eval-tokens", 512)
    arguments = ("warmup", folder, tmp_path / "warm", "--dataset", text, *sizes)
    document = json.loads(client.moeify(*arguments, "--push-to", "user/moe", "--json"))
    assert document["schema"] == "moeify.warmup/1"
    assert hub.bytes_in(mark) < first / 100
    assert len([e for e in hub.exchanges[mark:] if e.method == "PUT"]) == 1
    files = hub.repositories["user/moe"].files()
    changed = {name for name in files if files[name] != before.get(name)}
    assert changed == {ROUTERS, "README.md", "moeify.json"}
    assert files[ROUTERS] == (tmp_path / "warm" / ROUTERS).read_bytes()
    assert b"moeify warmup" in files["README.md"]


def test_pushing_the_same_again_changes_nothing(hub, client, folder):
    client.moeify("push", folder, "user/moe")
    commits = len(hub.repositories["user/moe"].commits)
    report = json.loads(client.moeify("push", folder, "user/moe", "--json"))
    assert "user/moe (main): 0 B of 2.9 MB to upload" in client.printed[-1]
    assert report["schema"] == "moeify.push/1"
    assert {"url", "commit", "files_uploaded", "bytes_uploaded"} <= report.keys()
    assert report["files_uploaded"] == report["bytes_uploaded"] == 0
    assert report["commit"] == hub.repositories["user/moe"].references["main"]
    assert len(hub.repositories["user/moe"].commits) == commits


def test_a_different_model_is_refused_unless_yes(hub, client, folder, tmp_path):
    before = hub.add("user/moe", contents(folder)).files()
    other = mixture(tmp_path / "moe", num_experts=8, max_shard_size="1MB")
    said = client.refused("push", other, "user/moe")
    assert "num_experts 4 instead of 8" in said
    assert "--yes" in said
    assert hub.repositories["user/moe"].files() == before
    client.moeify("push", other, "user/moe", "--yes")
    files = hub.repositories["user/moe"].files()
    stored = {name for name in files if name.endswith(".safetensors")}
    # The shards of the model before are gone: transformers must not find two sets of them.
    assert stored == {path.name for path in other.glob("*.safetensors")}


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}", "model.safetensors": b"x" * 64},
        {"tf_model.h5": b"x"},
        {"onnx/model.onnx": b"x"},
        {"adapter_config.json": b"{}"},
        {"config.json": b"{}", "moeify.json": b"not ours"},
    ],
    ids=lambda files: list(files)[-1],
)
def test_a_model_of_unknown_origin_is_refused(hub, client, folder, files):
    hub.add("user/mine", files)
    assert "was not made by moeify" in client.refused("push", folder, "user/mine")
    assert hub.repositories["user/mine"].files() == files


def test_what_is_no_model_is_not_in_the_way(hub, client, folder):
    hub.add("user/empty", {"README.md": b"# soon\n", "LICENSE": b"MIT"})
    client.moeify("push", folder, "user/empty", "-q")
    assert hub.repositories["user/empty"].files()["LICENSE"] == b"MIT"


def test_private_repositories(hub, client, folder):
    client.moeify("push", folder, "user/secret", "--private")
    assert hub.repositories["user/secret"].private
    hub.add("user/public", {"README.md": b"hello"})
    assert "is public" in client.refused("push", folder, "user/public", "--private")
    assert list(hub.repositories["user/public"].files()) == ["README.md"]


def test_an_empty_repository_that_somebody_makes_meanwhile_is_used(hub, client, folder):
    """Between looking and creating, another process creates it: the Hub answers 409."""
    hub.fail("GET", "/api/models/user/moe/revision/", status=404, code="RepoNotFound")
    hub.repositories["user/moe"] = Repository()
    client.moeify("push", folder, "user/moe")
    assert [e.status for e in hub.requests("POST", "/api/repos/create")] == [409]
    assert ROUTERS in hub.repositories["user/moe"].files()


@pytest.mark.parametrize(
    ("files", "options", "problem"),
    [
        ({"config.json": b"{}", "model.safetensors": b"x" * 64}, (), "was not made by moeify"),
        ({"README.md": b"hello"}, ("--private",), "is public"),
    ],
)
def test_what_somebody_puts_there_meanwhile_is_safe(hub, client, folder, files, options, problem):
    hub.fail("GET", "/api/models/user/moe/revision/", status=404, code="RepoNotFound")
    hub.add("user/moe", files)
    said = client.refused("push", folder, "user/moe", *options)
    assert problem in said
    assert [e.status for e in hub.requests("POST", "/api/repos/create")] == [409]
    assert hub.repositories["user/moe"].files() == files
    assert not hub.requests("PUT", "/objects/")


def test_a_repository_that_exists_unseen_is_not_written_to(hub, client, folder):
    hub.fail("GET", "/api/models/user/moe/revision/", status=404, code="RepoNotFound", times=2)
    hub.repositories["user/moe"] = Repository()
    assert "does not show it" in client.refused("push", folder, "user/moe")
    assert list(hub.repositories["user/moe"].files()) == [".gitattributes"]


@pytest.mark.parametrize("there_before", [True, False])
def test_a_commit_of_somebody_else_is_not_overwritten(hub, client, folder, there_before):
    """It lands while the weights are on their way."""
    if there_before:
        hub.add("user/moe", {"README.md": b"hello"})
    hub.meanwhile("PUT", "/objects/", lambda: hub.commit("user/moe", {"notes.txt": b"mine"}))
    said = client.refused("push", folder, "user/moe")
    assert "412" in said
    assert "2 of 11 files" in said
    files = hub.repositories["user/moe"].files()
    assert files["notes.txt"] == b"mine"
    assert ROUTERS not in files
    client.moeify("push", folder, "user/moe")
    files = hub.repositories["user/moe"].files()
    assert files["notes.txt"] == b"mine"
    assert ROUTERS in files


def test_push_to_of_upcycle(hub, client, folder, tmp_path):
    source = folder.with_name("moe-dense")
    arguments = ("upcycle", source, tmp_path / "out", "--experts", 2, "--push-to", "user/direct")
    document = json.loads(client.moeify(*arguments, "--json"))
    assert document["schema"] == "moeify.upcycle/1"
    assert ROUTERS in hub.repositories["user/direct"].files()
    assert f"{hub.url}/user/direct" in client.printed[-1]
    mark = len(hub.exchanges)
    never = ("upcycle", source, tmp_path / "never", "--push-to")
    assert "'no-user' is no repository" in client.refused(*never, "no-user")
    client.token = None
    assert "nobody is logged in" in client.refused(*never, "user/never")
    assert not (tmp_path / "never").exists()
    assert len(hub.exchanges) == mark


def test_push_to_that_fails_says_what_is_left_to_do(hub, client, folder, tmp_path):
    out = tmp_path / "out"
    hub.fail("POST", "/commit/", status=500)
    source = folder.with_name("moe-dense")
    said = client.refused("upcycle", source, out, "--experts", 2, "--push-to", "user/late")
    assert f"{out} is complete, but committing to user/late failed" in said.replace("\n", " ")
    assert f"hint: moeify push {out} user/late" in said.replace("\n", " ")
    client.moeify("push", out, "user/late")
    assert ROUTERS in hub.repositories["user/late"].files()


def test_push_to_of_prune(hub, client, folder, tmp_path):
    arguments = ("prune", folder, tmp_path / "pruned", "--keep", 2, "--by", "random")
    document = json.loads(client.moeify(*arguments, "--push-to", "user/pruned", "--json"))
    assert document["schema"] == "moeify.prune/1"
    files = hub.repositories["user/pruned"].files()
    assert json.loads(files["config.json"])["num_experts"] == 2
    assert b"moeify prune" in files["README.md"]


def test_what_does_not_belong_in_public_stays_home(hub, client, folder, tmp_path):
    messy = tmp_path / "messy"
    shutil.copytree(folder, messy)
    for name in (".env", "optimizer.pt", "training_args.bin", "model-old.safetensors"):
        (messy / name).write_bytes(b"secret")
    (messy / "checkpoint-10").mkdir()
    (messy / "checkpoint-10" / "rng_state.pth").write_bytes(b"secret")
    client.moeify("push", messy, "user/messy")
    assert not any(data == b"secret" for data in hub.repositories["user/messy"].files().values())
    assert "optimizer.pt" in client.printed[-1]


def test_a_link_out_of_the_folder_is_refused(hub, client, folder, tmp_path):
    linked = tmp_path / "linked"
    shutil.copytree(folder, linked)
    (tmp_path / "private.txt").write_text("mine")
    (linked / "notes.txt").symlink_to(tmp_path / "private.txt")
    assert "link out of the checkpoint folder" in client.refused("push", linked, "user/linked")
    assert "user/linked" not in hub.repositories


def test_without_a_right_to_write(hub, client, folder):
    said = client.refused("push", folder, "other/moe")
    assert "403" in said
    assert "other/moe" in said
    client.token = "hf_expired"
    assert "does not accept this token" in client.refused("push", folder, "user/moe")
    client.token, client.offline = TOKEN, True
    assert "HF_HUB_OFFLINE" in client.refused("push", folder, "user/moe")
    assert not hub.repositories


@pytest.mark.parametrize("repo_id", ["moe", "user/", "me/a..b", "../x/y", "me/moe.git", "a/b/c"])
def test_impossible_names_are_refused_before_any_request(repo_id, tmp_path):
    with pytest.raises(moeify.MoeifyError, match=r"no repository|ends in"):
        moeify.push(tmp_path, repo_id)
