"""Experts from several checkpoints on the command line, from folders and from the Hub's cache."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_cli import moeify
from tests.tiny import save_tiny, tree
from tests.upcycling.specialists import specialist
from tests.upcycling.test_adapters import save_adapter, targets


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-experts")
    save_tiny(folder / "base", "qwen3")
    for number, name in enumerate(("code", "german", "logs")):
        specialist(folder / "base", folder / name, number)
    save_adapter(folder / "base", folder / "lora", target_modules=targets("qwen3"))
    return folder


def test_names_by_commas_and_by_repetition(place: Path, tmp_path: Path) -> None:
    done = moeify(
        "upcycle",
        "base",
        tmp_path / "moe",
        "--experts-from",
        "code,german",
        "--experts-from",
        "lora",
        "--labels",
        "py,de,lora",
        "--rest",
        "mean",
        "--shares",
        "2,1,1",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    for part in ("from german  experts 1: de", "from lora    experts 2: lora", "3, top-2"):
        assert part in done.stdout
    assert f"moeify inspect {tmp_path / 'moe'} --weights" in done.stderr
    again = moeify("upcycle", "base", tmp_path / "moe", "--experts-from", "code,german", cwd=place)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    forced = moeify(
        "upcycle", "base", tmp_path / "moe", "--experts-from", "code,german", "--force", "--json", cwd=place
    )
    document = json.loads(forced.stdout)
    assert [source["label"] for source in document["sources"]] == ["code", "german"]
    assert document["num_experts"] == 2


def test_an_expert_joins_and_a_mean_comes_out(place: Path, tmp_path: Path) -> None:
    moeify("upcycle", "base", tmp_path / "moe", "--experts-from", "code,german", cwd=place)
    planned = moeify("add", tmp_path / "moe", tmp_path / "more", "--expert", "logs", "--dry-run", cwd=place)
    assert "2 -> 3, top-2" in planned.stdout
    assert not (tmp_path / "more").exists()
    added = moeify("add", tmp_path / "moe", tmp_path / "more", "--expert", "logs", "--json", cwd=place)
    document = json.loads(added.stdout)
    assert document["schema"] == "moeify.add/1"
    assert document["added"][0]["experts"] == [2]
    mean = moeify("extract", tmp_path / "more", tmp_path / "mean", "--expert", "0,2", "--shares", "3,1")
    assert mean.returncode == 0, mean.stderr
    assert "0 x 0.75 + 2 x 0.25 in 4 layers" in mean.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experts-from", "code,german", "--shares", "a,b"], "--shares 'a,b' is no list of"),
        (["--experts-from", "code,german", "--shares", "1,inf"], "--shares '1,inf' is no list of"),
        (["--experts-from", "code,nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_one_sentence(place: Path, tmp_path: Path, arguments: list, message: str) -> None:
    done = moeify("upcycle", "base", tmp_path / "out", *arguments, cwd=place, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert message in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == {}


def in_cache(hub: Path, name: str, folder: Path, commit: str, ref: str = "main") -> None:
    """Lay ``folder`` into a Hub cache as ``name`` at ``commit``."""
    repository = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / ref).write_text(commit)


def test_sources_from_the_hub_are_named_with_their_commits(place: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    in_cache(hub, "org/base", place / "base", "b" * 40)
    in_cache(hub, "me/code", place / "code", "c" * 40, ref="v1")
    in_cache(hub, "me/lora", place / "lora", "d" * 40)
    done = moeify(
        "upcycle",
        "org/base",
        tmp_path / "moe",
        "--experts-from",
        "me/code@v1,me/lora",
        "--json",
        HF_HUB_CACHE=str(hub),
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    sources = json.loads(done.stdout)["sources"]
    assert [(s["name"], s["revision"], s["adapter"]) for s in sources] == [
        ("me/code", "c" * 40, False),
        ("me/lora", "d" * 40, True),
    ]
    card = (tmp_path / "moe" / "README.md").read_text()
    assert "base_model:\n- org/base\n- me/code\n- me/lora\n" in card
    assert "\nbase_model_relation: merge\n" in card
    assert "| 1 | lora | me/lora at dddddddd, a LoRA adapter |" in card
