"""`moeify prune` and `moeify extract` as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pruning.tiny_mixtures import save


def moeify(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moeify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    save("bert_moe", folder / "moe")
    return folder


def test_prune_says_what_went(work: Path) -> None:
    done = moeify("prune", "moe", "--keep", 4, "--by", "aimer", cwd=work)
    assert done.returncode == 0, done.stderr
    for part in ("moe became moe-e4-aimer", "8 -> 4 in 2 layers, top-2", "layer 2 lost"):
        assert part in done.stdout
    assert done.stderr == ""


def test_json_is_one_document_with_the_promised_keys(work: Path) -> None:
    done = moeify("prune", "moe", "out", "--ratio", 0.25, "--by", "random", "--json", cwd=work)
    document = json.loads(done.stdout)
    assert document["schema"] == "moeify.prune/1"
    promised = {"output", "by", "num_experts_before", "num_experts", "kept", "bytes_written", "seconds"}
    assert promised <= document.keys()
    assert document["num_experts"] == 6 and set(document["kept"]) == {"0", "2"}
    files = (work / "out").glob("*.safetensors")
    assert document["bytes_written"] == sum(path.stat().st_size for path in files)


def test_dense_and_extract(work: Path) -> None:
    command = ["prune", "moe", "--keep", 1, "--dense", "dense"]
    assert moeify(*command, cwd=work).returncode == 0
    done = moeify("extract", "moe", "expert", "--expert", 3, "--json", cwd=work)
    assert json.loads(done.stdout)["model_type"] == "bert"
    best = moeify("extract", "moe", "best", "--by", "aimer", cwd=work)
    assert " by aimer in 2 layers" in best.stdout
    for name in ("dense", "expert", "best"):
        config = json.loads((work / name / "config.json").read_text())
        assert config["architectures"] == ["BertForMaskedLM"] and "num_experts" not in config


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["prune", "moe", "--keep", "4", "--by", "reap"], "reap needs text", "--by aimer"),
        (["prune", "moe", "--keep", "8", "--by", "aimer"], "nothing to do", "--keep 4"),
        (["prune", "./nothing", "--keep", "4", "--by", "aimer"], "is not a checkpoint folder", "name a"),
        (["extract", "moe", "--expert", "9"], "there is no expert 9", "0 to 7"),
    ],
)
def test_failures_are_a_sentence_and_a_hint(work: Path, arguments: list[str], message: str, hint: str) -> None:
    before = sorted(path.name for path in work.iterdir())
    done = moeify(*arguments, cwd=work)
    assert done.returncode == 1 and done.stdout == ""
    said = done.stderr.splitlines()
    assert message in said[0] and said[0].startswith("error:")
    assert said[1].startswith("hint:") and hint in said[1]
    assert sorted(path.name for path in work.iterdir()) == before


def test_help_imports_no_torch(work: Path) -> None:
    code = (
        "import sys; from moeify.cli.app import app\n"
        "try: app(['prune', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
