"""Datasets by Hub id: read by the real client, downloaded or streamed."""

import json

import pytest

from moeify.routing.config import DataConfig
from moeify.routing.data import read_blocks, tokenizer_for

from ..warming.mixtures import corpus, demo_mixture

SMALL = ("--steps", 0, "--seq-len", 32, "--fit-tokens", 256, "--eval-tokens", 128, "--device", "cpu")
CARD = b"---\nconfigs:\n- config_name: default\n  data_files: rows.jsonl\n---\n"


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("texts"), 60)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_warm_up_reads_a_dataset_by_its_id(hub, client, moe, texts, tmp_path, streaming):
    hub.add("datasets/org/texts", {"README.md": CARD, "rows.jsonl": texts.read_bytes()})
    options = ("--domain-column", "domain", "--json", *["--streaming"] * streaming)
    out = client.moeify("warmup", moe, tmp_path / "warm", "--dataset", "org/texts", *SMALL, *options)
    assert hub.requests("GET", "/datasets/org/texts/resolve/.*rows.jsonl")
    config = DataConfig(dataset=str(texts), domain_column="domain", streaming=streaming)
    local = read_blocks(config, tokenizer_for(moe), 32, 1280)
    assert json.loads(out)["data_fingerprint"] == local.fingerprint
    record = json.loads((tmp_path / "warm" / "moeify.json").read_text())["steps"][-1]
    assert record["options"]["dataset"] == "org/texts"
    assert record["results"]["data_fingerprint"] == local.fingerprint


def test_a_dataset_that_is_not_there_or_not_open_is_one_sentence(hub, client, moe, tmp_path):
    hub.add("datasets/other/secret", {"rows.jsonl": b'{"text": "x"}\n'}, private=True)
    for name in ("org/nowhere", "other/secret"):
        said = client.refused("warmup", moe, tmp_path / "warm", "--dataset", name, *SMALL)
        assert said.startswith(f"error: cannot read {name}: ")
    assert not (tmp_path / "warm").exists()
