"""A Hub id costs one request a file: headers travel, weights do not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inspection.hub_server import COMMIT, Traffic, hub_server
from tests.inspection.sparse_checkpoint import ACTIVE, TOTAL, write_sparse

REPO = "someone/big-moe"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse(tmp_path_factory.mktemp("sparse"))


def _inspect(traffic: Traffic, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": traffic.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_none",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-m", "moeify", "inspect", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_requests_and_bytes(sparse: Path, tmp_path: Path) -> None:
    with hub_server(REPO, sparse) as traffic:
        done = _inspect(traffic, REPO, home=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["params_total"], report["params_active"]) == (TOTAL, ACTIVE)
    assert report["revision"] == COMMIT
    assert len(traffic.requests) <= 16 + 3
    assert traffic.bytes_sent <= 5_000_000
    assert not any(tmp_path.rglob("*.safetensors"))


def test_same_report_as_from_a_folder(sparse: Path, tmp_path: Path) -> None:
    with hub_server(REPO, sparse) as traffic:
        remote = json.loads(_inspect(traffic, REPO, home=tmp_path).stdout)
        local = json.loads(_inspect(traffic, str(sparse), home=tmp_path).stdout)
    for key in ("source", "revision"):
        remote.pop(key), local.pop(key)
    assert remote == local


def test_server_that_ignores_ranges_sends_little(sparse: Path, tmp_path: Path) -> None:
    with hub_server(REPO, sparse) as traffic:
        traffic.honours_ranges = False
        done = _inspect(traffic, REPO, home=tmp_path)
    assert json.loads(done.stdout)["params_total"] == TOTAL
    assert traffic.bytes_sent < 200_000_000  # what fits in socket buffers, of 61 GB


def test_single_file_repository(tmp_path: Path) -> None:
    from moeify.checkpoint.header import encode_header

    folder = tmp_path / "repo"
    folder.mkdir()
    header = encode_header([("w", "F32", (2,))])
    (folder / "model.safetensors").write_bytes(header + bytes(8))
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with hub_server(REPO, folder) as traffic:
        done = _inspect(traffic, REPO, home=tmp_path)
    report = json.loads(done.stdout)
    assert (report["kind"], report["params_total"]) == ("unknown", 2)
    assert len(traffic.requests) == 3


def test_what_a_repository_holds_besides_is_a_note(sparse: Path, tmp_path: Path) -> None:
    from moeify.checkpoint.header import encode_header

    folder = tmp_path / "repo"
    folder.mkdir()
    header = encode_header([("module.w", "F32", (2,))])
    (folder / "model.safetensors").write_bytes(header + bytes(8))
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    shutil.copy(sparse / "model.safetensors.index.json", folder)
    with hub_server(REPO, folder) as traffic:
        done = _inspect(traffic, REPO, home=tmp_path)
    report = json.loads(done.stdout)
    assert (report["params_total"], report["problems"]) == (2, [])
    said = " ".join(report["notes"])
    assert "nothing of model.safetensors.index.json" in said and "without module." in said


def test_an_adapter_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "adapter_config.json").write_text("{}")
    with hub_server(REPO, tmp_path / "repo") as traffic:
        done = _inspect(traffic, REPO, home=tmp_path)
    assert done.returncode == 1 and "is an adapter" in done.stderr


@pytest.mark.parametrize(
    ("change", "kind"), [("remove", "missing_shard"), ("truncate", "damaged_shard"), ("garble", "damaged_shard")]
)
def test_damaged_repository(sparse: Path, tmp_path: Path, change: str, kind: str) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    for path in sparse.iterdir():
        (folder / path.name).symlink_to(path)
    victim = folder / "model-00003-of-00016.safetensors"
    with open(victim, "rb") as file:
        head = file.read(1 << 20)
    victim.unlink()
    if change == "truncate":
        victim.write_bytes(head)
    elif change == "garble":
        victim.write_bytes(b"\xff" * 100)
    with hub_server(REPO, folder) as traffic:
        done = _inspect(traffic, REPO, home=tmp_path)
    assert done.returncode == 3
    assert kind in {problem["kind"] for problem in json.loads(done.stdout)["problems"]}


@pytest.mark.parametrize(("status", "said"), [(403, "gated"), (500, "failed"), (404, "no such model")])
def test_refusals_are_one_sentence(tmp_path: Path, status: int, said: str) -> None:
    with hub_server("other/repo" if status == 404 else REPO, tmp_path) as traffic:
        traffic.status = 200 if status == 404 else status
        done = _inspect(traffic, REPO, home=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    done = _inspect(Traffic(endpoint="http://127.0.0.1:9"), REPO, home=tmp_path)
    assert done.returncode == 1
    assert "failed" in done.stderr
    assert "unexpected failure" not in done.stderr
