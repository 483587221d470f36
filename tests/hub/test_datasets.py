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


READING = """
import json, sys
from moeify.errors import DatasetError
from moeify.routing.config import DataConfig
from moeify.routing.documents import read_documents

for options in json.loads(sys.argv[1]):
    try:
        print(json.dumps(sorted(text for text, *_ in read_documents(DataConfig(**options)))))
    except DatasetError as error:
        print(json.dumps([error.message, error.hint]))
"""
TWO = b"""---
configs:
- config_name: ox
  data_files:
  - {split: train, path: ox-*.jsonl}
  - {split: test, path: test.jsonl}
- config_name: bee
  data_files: bee.jsonl
---
"""
READ = [
    ({"dataset": "org/two:ox"}, ["x", "y"]),
    ({"dataset": "org/two:ox", "streaming": True}, ["x", "y"]),
    ({"dataset": "org/two:bee"}, ["b"]),
    ({"dataset": "org/table"}, ["x", "y"]),
    ({"dataset": "org/table", "split": "dev"}, ["org/table has no split 'dev', but train", "leave --split out"]),
    (
        {"dataset": "org/two"},
        ["org/two has 2 configurations, and none is named", "pass --dataset org/two:NAME with one of: ox, bee"],
    ),
    (
        {"dataset": "org/two:cow"},
        ["org/two has no configuration 'cow'", "pass --dataset org/two:NAME with one of: ox, bee"],
    ),
    (
        {"dataset": "org/two:ox", "split": "dev"},
        ["org/two:ox has no split 'dev', but train, test", "pass --split with one of: train, test"],
    ),
]


TABLE = b"""---
dataset_info:
  features:
  - {name: text, dtype: string}
  - {name: more, dtype: string}
---
"""


def table(text: str, more: dict[str, int] | None) -> bytes:
    import pandas

    return bytes(pandas.DataFrame([{"text": text, "more": more}]).to_parquet())


def test_configurations_and_splits_are_read_or_named(hub, client):
    late = json.dumps({"text": "y", "more": {"k": 1}}).encode()
    files = {"README.md": TWO, "ox-1.jsonl": b'{"text": "x", "more": null}\n', "ox-2.jsonl": late}
    hub.add(
        "datasets/org/table", {"README.md": TABLE, "1.parquet": table("x", None), "2.parquet": table("y", {"k": 1})}
    )
    hub.add("datasets/org/two", files | {"test.jsonl": b'{"text": "t"}\n', "bee.jsonl": b'{"text": "b"}\n'})
    done = client.run("-c", READING, json.dumps([options for options, _ in READ]))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [wanted for _, wanted in READ]


def test_a_dataset_that_is_not_there_or_not_open_is_one_sentence(hub, client, moe, tmp_path):
    hub.add("datasets/other/secret", {"rows.jsonl": b'{"text": "x"}\n'}, private=True)
    for name in ("org/nowhere", "other/secret"):
        said = client.refused("warmup", moe, tmp_path / "warm", "--dataset", name, *SMALL)
        assert said.startswith(f"error: cannot read {name}: ")
    assert not (tmp_path / "warm").exists()
