"""Checkpoints by Hub id: what is fetched, what is kept, and what is said when that fails."""

import json
import shlex

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import moeify
from moeify.errors import MoeifyError

from ..real.hub_shapes import sentence_encoder_like
from .models import CARD, contents, dense, mixture

EXTRAS = {
    "pytorch_model.bin": b"pickle" * 1000,
    "onnx/model.onnx": b"onnx" * 1000,
    "onnx/config.json": b"{}",
    "model.fp16.safetensors": b"variant" * 100,
    "flax_model.msgpack": b"flax" * 1000,
    "checkpoint-5/model.safetensors": b"old" * 1000,
    "modeling_odd.py": b"raise SystemExit\n",
}


EVERY = """
import sys
from moeify.cli.app import app
for line in sys.argv[1].strip().splitlines():
    app(line.split(), standalone_mode=False)
"""


@pytest.fixture
def files(tmp_path):
    return contents(dense(tmp_path / "source")) | {"README.md": CARD}


def test_only_what_is_needed_is_fetched_and_only_once(hub, client, files, tmp_path):
    hub.add("org/dense", files | EXTRAS)
    client.moeify("upcycle", "org/dense", tmp_path / "a", "--experts", 2)
    fetched = {e.path.split("/resolve/")[1].split("/", 1)[1] for e in hub.requests("GET", "resolve")}
    assert fetched == set(files)
    mark = len(hub.exchanges)
    client.moeify("upcycle", "org/dense", tmp_path / "b", "--experts", 2)
    assert not [e for e in hub.exchanges[mark:] if "/resolve/" in e.path and e.method == "GET"]
    client.offline = True
    mark = len(hub.exchanges)
    client.moeify("upcycle", "org/dense", tmp_path / "c", "--experts", 2)
    assert len(hub.exchanges) == mark
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_revision_and_commit_are_recorded(hub, client, files, tmp_path):
    repository = hub.add("org/dense", files)
    old = repository.references["main"]
    hub.add("org/dense", {**files, "README.md": b"new"}).references["v1"] = old
    hub.repositories["org/dense"].commits[old] = repository.commits[old]
    client.moeify("upcycle", "org/dense", tmp_path / "a", "--revision", "v1", "--experts", 2)
    record = json.loads((tmp_path / "a" / "moeify.json").read_text())
    assert (record["source"], record["revision"]) == ("org/dense", old)
    card = (tmp_path / "a" / "README.md").read_text()
    assert "base_model: org/dense" in card
    assert old in card
    assert "license: apache-2.0" in card
    said = client.refused("upcycle", "org/dense", tmp_path / "b", "--revision", "v9")
    assert "no revision 'v9'" in said


@pytest.mark.slow
def test_every_command_takes_an_id_and_a_revision(hub, client, files, tmp_path):
    """main is no model at all; the second time nothing is asked of the Hub."""
    for name, good in (("org/dense", files), ("org/moe", contents(mixture(tmp_path / "made")))):
        repository = hub.add(name, good)
        repository.references["v1"] = repository.references["main"]
        hub.commit(name, {"config.json": b"{}"})
    client.moeify("verify", "org/dense@v1", "org/moe@v1")
    client.offline, mark = True, len(hub.exchanges)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    sizes = "--steps 0 --seq-len 32 --fit-tokens 1024 --eval-tokens 512"
    commands = f"""
        verify org/dense@v1 org/moe@v1
        inspect org/moe --revision v1
        inspect org/moe@v1 --weights --reference org/dense@v1
        attach org/moe attach --revision v1
        extract org/moe extract --expert 1 --revision v1
        prune org/moe@v1 prune --keep 2 --by random
        upcycle org/dense@v1 upcycle --experts 2
        warmup org/moe warmup --dataset {text} {sizes} --revision v1
    """
    done = client.run("-c", EVERY, commands, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(hub.exchanges) == mark
    for name in ("attach", "extract", "prune", "upcycle", "warmup"):
        assert any((tmp_path / name).glob("model*.safetensors"))
    client.offline = False
    said = client.refused("inspect", "org/moe@v1", "--revision", "v2")
    assert "org/moe@v1 names one revision, --revision v2 another" in said
    assert "no revision 'v9'" in client.refused("verify", "org/dense@v9", "org/moe@v1")


def test_the_next_command_that_upcycle_names_has_the_revision(hub, client, files, tmp_path):
    repository = hub.add("org/dense", files)
    repository.references["v1"] = repository.references["main"]
    client.moeify("upcycle", "org/dense", tmp_path / "a", "--revision", "v1", "--experts", 2)
    assert f"next: moeify verify org/dense@v1 {tmp_path / 'a'}" in client.printed[-1]


def test_names_without_a_user(hub, client, files, tmp_path):
    hub.add("tiny-qwen3", files)
    client.moeify("upcycle", "tiny-qwen3", tmp_path / "a", "--experts", 2)
    assert json.loads((tmp_path / "a" / "moeify.json").read_text())["source"] == "tiny-qwen3"


def test_modules_of_a_sentence_encoder_come_along(hub, client, tmp_path):
    files = contents(sentence_encoder_like(tmp_path / "encoder"))
    dense_module = {"2_Dense/config.json": b"{}", "2_Dense/model.safetensors": b"weights"}
    hub.add("org/encoder", files | dense_module)
    client.moeify("upcycle", "org/encoder", tmp_path / "a", "--experts", 2)
    written = contents(tmp_path / "a")
    assert written["2_Dense/model.safetensors"] == b"weights"
    assert written["modules.json"] == files["modules.json"]
    assert b"SentenceTransformer(" in written["README.md"]


def test_clear_words_for_what_cannot_be_had(hub, client, files, tmp_path):
    hub.add("org/gated", files, gated=True)
    hub.add("org/private", files, private=True)
    out = tmp_path / "out"
    assert "org/gated is gated" in client.refused("upcycle", "org/gated", out)
    for name in ("org/private", "org/misspelt"):
        said = client.refused("upcycle", name, out)
        assert "no such model on the Hub" in said
        assert "hf auth login" in said
    client.token = "hf_expired"
    assert "does not accept this token" in client.refused("upcycle", "org/private", out)
    assert not out.exists()
    client.offline = True
    said = client.refused("upcycle", "org/other", out)
    assert "not in the local cache" in said
    assert "HF_HUB_OFFLINE" in said


def test_a_half_filled_cache_is_recognised_offline(hub, client, files, tmp_path):
    hub.add("org/dense", files)
    code = "from huggingface_hub import hf_hub_download as d; d('org/dense', 'config.json')"
    assert client.run("-c", code).returncode == 0
    client.offline = True
    said = client.refused("upcycle", "org/dense", tmp_path / "out")
    assert "cache" in said
    assert "cannot be reached" in said


def test_pickles_are_not_downloaded(hub, client, tmp_path):
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    pickled = {"config.json": json.dumps(config).encode(), "pytorch_model.bin": b"pickle" * 999}
    hub.add("org/old", pickled)
    said = client.refused("upcycle", "org/old", tmp_path / "out")
    assert "holds pytorch_model.bin" in said
    assert "import BertForMaskedLM" in said
    assert "org/old" in said
    assert not hub.requests("GET", "pytorch_model.bin")


def test_the_hint_for_pickles_converts_them(tmp_path, monkeypatch):
    config = BertConfig(
        vocab_size=13,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        architectures=["BertForMaskedLM"],
    )
    old = tmp_path / "it's old"
    old.mkdir()
    torch.save(BertForMaskedLM(config).state_dict(), old / "pytorch_model.bin")
    (old / "config.json").write_text(json.dumps(config.to_dict()))
    (old / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]))
    with pytest.raises(MoeifyError, match="no safetensors file") as caught:
        moeify.upcycle(old, tmp_path / "out")
    python, option, code = shlex.split(caught.value.hint.removeprefix("convert it once: "))
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    moeify.upcycle(tmp_path / "it's old-safetensors", tmp_path / "out", num_experts=2)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["BertMoeForMaskedLM"]


def test_a_repository_without_weights(hub, client, tmp_path):
    hub.add("org/empty", {"config.json": b"{}"})
    assert "no safetensors weights" in client.refused("upcycle", "org/empty", tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil.json", "../../../evil.json", "a/../../../../evil.json", "/tmp/evil.json"])
def test_a_listing_leads_nowhere_else(hub, client, files, tmp_path, name):
    hub.add("org/dense", files | {name: b'{"evil": true}'})
    client.refused("upcycle", "org/dense", tmp_path / "out", "--experts", 2)
    assert not (tmp_path / "out").exists()
    strays = [path for path in tmp_path.rglob("evil.json") if "snapshots" not in path.parts]
    assert strays == []


def test_the_weights_that_transformers_loads_are_fetched_and_no_others(hub, client, files, tmp_path):
    index = "model.safetensors.index.json"
    listed = json.loads(files[index])
    named = {f: f"weights/{f}" for f in set(listed["weight_map"].values())}
    listed["weight_map"] = {t: named[f] for t, f in listed["weight_map"].items()}
    moved = {named.get(name, name): raw for name, raw in files.items()}
    old = {"model.safetensors": b"not what config.json names"}
    config = json.loads(files["config.json"]) | {"transformers_weights": f"my.{index}"}
    mine = {f"my.{index}": json.dumps(listed).encode(), "config.json": json.dumps(config).encode()}
    hub.add("org/renamed", moved | {index: json.dumps(listed).encode()})
    hub.add("org/named", moved | mine | old)
    for name in ("renamed", "named"):
        client.moeify("upcycle", f"org/{name}", tmp_path / name, "--experts", 2)
    client.moeify("upcycle", "org/renamed", tmp_path / "again", "--experts", 2)
    first, other = (contents(tmp_path / name) for name in ("renamed", "named"))
    weights = [name for name in first if name.endswith(".safetensors")]
    assert weights
    assert all(first[name] == other[name] for name in weights)
    whole = {"model.safetensors": (tmp_path / "again" / weights[0]).read_bytes()}
    hub.add("org/both", files | whole)
    client.run("-m", "moeify", "upcycle", "org/both", tmp_path / "both")
    fetched = {e.path for e in hub.requests("GET", "org/both/resolve")}
    assert any(path.endswith("/model.safetensors") for path in fetched)
    assert not any("-of-" in path for path in fetched)
