"""Reading and packing, with the tokenizer of the shipped GPT-2."""

import json
from pathlib import Path

import numpy as np
import pytest

from moeify.errors import ConfigError, DatasetError
from moeify.routing import documents
from moeify.routing.config import DataConfig
from moeify.routing.data import block_length, pack, read_blocks, tokenizer_for

DEMO = Path(__file__).parents[2] / "moeify" / "demo"
ROWS = [{"text": f"The {name} of number {n}", "kind": name} for n in range(30) for name in ("ox", "bee")]


def read_documents(config):
    return ((found.text, found.domain) for found in documents.read_documents(config))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_for(DEMO / "gpt2")


def written(folder: Path, ending: str) -> Path:
    path = folder / f"rows{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif ending == ".json":
        path.write_text(json.dumps(ROWS))
    elif ending == ".csv":
        path.write_text("text,kind\n" + "".join(f"{r['text']},{r['kind']}\n" for r in ROWS))
    elif ending == ".txt":
        path.write_text("\n\n".join(row["text"] for row in ROWS))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_file(tmp_path, ending, streaming):
    column = None if ending == ".txt" else "kind"
    config = DataConfig(dataset=str(written(tmp_path, ending)), domain_column=column, streaming=streaming)
    found = list(read_documents(config))
    wanted = [(row["text"], row["kind"] if column else None) for row in ROWS]
    assert sorted(found) == sorted(wanted)
    assert found != wanted, "texts come shuffled"


def test_max_samples_and_seed(tmp_path):
    with pytest.raises(ConfigError, match="seed must be 0 or more"):
        DataConfig(dataset="x.txt", seed=-1)
    path = str(written(tmp_path, ".jsonl"))
    first = list(read_documents(DataConfig(dataset=path, max_samples=7)))
    assert len(first) == 7
    assert first == list(read_documents(DataConfig(dataset=path, max_samples=7)))
    assert first != list(read_documents(DataConfig(dataset=path, max_samples=7, seed=1)))


def test_packing_keeps_every_token_and_never_mixes_domains():
    documents = [([n] * (3 + n % 5), "even" if n % 2 == 0 else "odd") for n in range(1, 40)]
    blocks = pack(documents, 8, padding=0)
    assert blocks.tokens == sum(len(tokens) for tokens, _ in documents)
    mask = blocks.inputs()["attention_mask"].numpy()
    assert (mask.sum(1) == blocks.lengths).all()
    assert ((blocks.input_ids != 0) == (mask == 1)).all()
    assert blocks.domain_names == ("even", "odd")
    for name, domain in zip(("even", "odd"), (0, 1), strict=True):
        rows = blocks.take(blocks.domains == domain)
        flat = [t for row, n in zip(rows.input_ids, rows.lengths, strict=True) for t in row[:n]]
        assert flat == [t for tokens, d in documents if d == name for t in tokens]
        assert (rows.lengths < 8).sum() <= 1


def test_held_out_blocks_come_from_every_domain_and_are_in_no_other_part():
    documents = [([n] * 8, "ab"[n % 2]) for n in range(1, 41)]
    train, held_out = pack(documents, 8, padding=0).split(0.1)
    assert len(train) + len(held_out) == 40
    assert not set(train.input_ids.ravel()) & set(held_out.input_ids.ravel())
    assert np.bincount(held_out.domains).tolist() == [2, 2]
    one = pack([([1] * 8, None)], 8, padding=0)
    with pytest.raises(DatasetError, match="one block"):
        one.split(0.1)


def test_reading_stops_when_there_are_enough_tokens(tokenizer):
    config = DataConfig(dataset=str(DEMO / "text.jsonl"))
    blocks = read_blocks(config, tokenizer, 64, max_tokens=3000)
    assert 3000 <= blocks.tokens < 4500
    again = read_blocks(config, tokenizer, 64, max_tokens=3000)
    assert blocks.fingerprint == again.fingerprint
    assert blocks.fingerprint != blocks.take(slice(1, None)).fingerprint


def test_texts_end_with_the_end_of_text(tokenizer, tmp_path):
    blocks = read_blocks(DataConfig(dataset=str(written(tmp_path, ".jsonl"))), tokenizer, 16)
    assert (blocks.input_ids == tokenizer.eos_token_id).sum() >= len(ROWS)


def test_block_length():
    assert block_length({"n_positions": 64}, None) == 64
    assert block_length({"max_position_embeddings": 4096}, None) == 512
    assert block_length({"max_position_embeddings": 4096}, 1024) == 1024
    with pytest.raises(ConfigError, match="64 positions"):
        block_length({"n_positions": 64}, 65)


@pytest.mark.parametrize(
    ("content", "ending", "options", "message"),
    [
        ('{"body": "x"}\n', ".jsonl", {}, "no column 'text'"),
        ('{"text": "x"}\n', ".jsonl", {"domain_column": "kind"}, "no column 'kind'"),
        ('{"text": 3}\n', ".jsonl", {}, "holds int, not text"),
        ('{"text": "  "}\n', ".jsonl", {}, "holds no text"),
        ('{"text": "short"}\n', ".jsonl", {}, "fewer than one block"),
        ("", ".txt", {}, "is empty"),
        ("\x00\x01{", ".jsonl", {}, "cannot read"),
        ("text", ".doc", {}, "ending"),
        ('{"text": "x"}\n', ".jsonl", {"split": "test"}, "has no split 'test', but train"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_data_is_one_sentence_and_a_hint(tmp_path, tokenizer, content, ending, options, message, streaming):
    path = tmp_path / f"data{ending}"
    path.write_text(content)
    config = DataConfig(dataset=str(path), streaming=streaming, **options)
    with pytest.raises(DatasetError, match=message) as caught:
        read_blocks(config, tokenizer, 32)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_missing_file_and_a_folder_without_tokenizer(tmp_path, tokenizer):
    with pytest.raises(DatasetError, match="does not exist"):
        read_blocks(DataConfig(dataset="no-such.jsonl"), tokenizer, 32)
    with pytest.raises(DatasetError, match="holds no file"):
        read_blocks(DataConfig(dataset=str(tmp_path)), tokenizer, 32)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(DatasetError, match="no tokenizer"):
        tokenizer_for(tmp_path)


def table(folder: Path, ending: str, rows: list[dict]) -> str:
    """``rows`` in a file as pandas, or json for lines, writes it."""
    import pandas

    path = folder / f"table{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending == ".csv":
        pandas.DataFrame(rows, dtype=object).to_csv(path, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(path)
    return str(path)


STREAMED = [(".jsonl", False), (".jsonl", True), (".json", False), (".csv", False), (".csv", True)]
STREAMED += [(".parquet", False)]  # streamed, datasets waits for seconds at the end


@pytest.mark.parametrize(("ending", "streaming"), STREAMED)
@pytest.mark.parametrize("domains", [(1, None, 20), ("a", None, "null"), ("a", " ", "b")])
def test_texts_without_a_domain_are_left_out_and_counted(tmp_path, tokenizer, ending, streaming, domains):
    rows = [{"text": f"The {d} text of these", "of": d} for d in domains for _ in range(3)]
    data = DataConfig(dataset=table(tmp_path, ending, rows), domain_column="of", streaming=streaming)
    blocks = read_blocks(data, tokenizer, 8)
    assert blocks.domain_names == tuple(sorted(str(d) for d in domains if d and str(d).strip()))
    assert blocks.documents == 6
    assert blocks.notes == ("3 texts were left out: column 'of' is empty there",)
    assert blocks.split(0.5)[0].notes == blocks.notes
    plain = DataConfig(dataset=data.dataset, streaming=streaming)
    assert read_blocks(plain, tokenizer, 8).notes == ()


def test_a_column_that_is_empty_everywhere_is_refused(tmp_path, tokenizer):
    rows = [{"text": "a text", "of": None}] * 2
    data = DataConfig(dataset=table(tmp_path, ".jsonl", rows), domain_column="of")
    with pytest.raises(DatasetError, match=r"'of' of .* is empty in all 2 texts"):
        read_blocks(data, tokenizer, 2)


def test_cells_of_a_csv_file_stay_as_they_are_written(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("text,of\nNA,007\nnull,1.50\n12,\n")
    found = read_documents(DataConfig(dataset=str(path), domain_column="of"))
    assert set(found) == {("NA", "007"), ("null", "1.50"), ("12", None)}


def test_rows_of_json_lines_need_not_be_alike(tmp_path):
    rows = [{"text": f"text {n}", "of": n, "meta": None} for n in range(200)]
    rows += [{"text": "x", "of": "late", "meta": {"k": [1]}, "more": 1}, {"of": "none"}]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in rows] + ["", '{"text": "\\ud83d\t", "of": "half"}']
    path.write_bytes("\r\n".join(lines).encode())
    found = dict(read_documents(DataConfig(dataset=str(path), domain_column="of")))
    assert len(found) == 202
    assert found["text 7"] == "7"
    assert found["?\t"] == "half"
    assert found["x"] == "late"
    late = DataConfig(dataset=str(path), text_column="meta")
    with pytest.raises(DatasetError, match=r"column 'meta' of .* holds dict, not text"):
        list(read_documents(late))
    path.write_text('{"text": "x"}\n[1]\n')
    with pytest.raises(DatasetError, match="row 2: a row is an object, not list"):
        list(read_documents(DataConfig(dataset=str(path))))


@pytest.mark.parametrize(
    ("ending", "streaming"), [(".jsonl", False), (".jsonl", True), (".json", False), (".parquet", False)]
)
def test_hints_name_only_columns_that_can_be_read(tmp_path, ending, streaming):
    chat = [{"role": "user", "content": "Who?"}]
    rows = [{"talk": chat, "id": n, "title": "t", "body": f"body {n}", "tags": [{"a": 1}]} for n in range(3)]
    path = table(tmp_path, ending, rows)
    with pytest.raises(DatasetError, match="no column 'text'") as caught:
        list(read_documents(DataConfig(dataset=path, streaming=streaming)))
    assert caught.value.hint == "pass --text-column with one of: talk, title, body"
    data = DataConfig(dataset=path, text_column="body", streaming=streaming)
    assert sorted(text for text, _ in read_documents(data)) == ["body 0", "body 1", "body 2"]
    path = table(tmp_path, ending, [{"tags": [{"a": 1}]}] * 2)
    for column in (None, "tags"):
        with pytest.raises(DatasetError) as caught:
            list(read_documents(DataConfig(dataset=path, text_column=column, streaming=streaming)))
        assert "a conversation is a list of {role, content}" in str(caught.value.hint)


def test_reading_stops_at_the_very_token(tokenizer):
    config = DataConfig(dataset=str(DEMO / "text.jsonl"))
    assert read_blocks(config, tokenizer, 64, max_tokens=3000).tokens == 3000
    few = read_blocks(config, tokenizer, 64, max_tokens=20)
    assert (few.tokens, few.input_ids.shape) == (20, (1, 64))
