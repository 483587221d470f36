"""Data as people have it: each form is read, or named in a sentence with a way out."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from moeify.errors import DatasetError
from moeify.provenance.record import Record, Step
from moeify.routing.chats import rendered
from moeify.routing.config import DataConfig
from moeify.routing.data import read_blocks, tokenizer_for
from moeify.routing.documents import Document, read_documents

DEMO = Path(__file__).parents[2] / "moeify" / "demo"
TEXTS = [f"The naïve ox of number {n}" for n in range(12)]
ROWS = [{"text": text, "of": "ox" if n % 2 else "bee"} for n, text in enumerate(TEXTS)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
STRICT = "{{ raise_exception('roles must alternate') }}"
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me.", "weight": None}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Me."}, {"type": "image", "text": None}]},
]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(folder: Path, *tables: list[dict]) -> Path:
    import pandas

    folder.mkdir()
    for number, rows in enumerate(tables):
        pandas.DataFrame(rows).to_parquet(folder / f"part-{number}.parquet")
    return folder


def saved(folder: Path) -> Path:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows.select(range(5)), "kept": rows}).save_to_disk(folder / "both")
    rows.save_to_disk(folder / "one", num_shards=2)
    return folder


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def split_in_two(folder: Path, ending: str) -> Path:
    rows = LINES.splitlines(keepends=True)
    put(folder / "README.md", "what this is")
    halves = ("".join(rows[:5]), "".join(rows[5:]))
    if ending.startswith(".txt"):
        halves = ("\n\n".join(TEXTS[:5]), "\n\n".join(TEXTS[5:]))
    for name, half in zip("ab", map(str.encode, halves), strict=True):
        put(folder / f"{name}{ending}", gzip.compress(half) if ending.endswith(".gz") else half)
    return folder


FORMS = {
    "folder": lambda at: split_in_two(at / "rows", ".jsonl"),
    "glob": lambda at: split_in_two(at / "rows", ".ndjson") / "*.ndjson",
    "list": lambda at: ",".join(map(str, sorted(split_in_two(at / "rows", ".jsonl").glob("?.jsonl")))),
    "brackets": lambda at: put(at / "rows[1]" / "a[2].jsonl", LINES),
    "folder in brackets": lambda at: split_in_two(at / "rows[1]", ".txt.gz"),
    "gz": lambda at: put(at / "rows.json.gz", gzip.compress(LINES.encode())),
    "capitals": lambda at: put(at / "ROWS.JSONL.GZ", gzip.compress(LINES.encode())),
    "tsv": lambda at: put(at / "rows.TSV", "text\tof\n" + "".join(f"{r['text']}\t{r['of']}\n" for r in ROWS)),
    "bom": lambda at: put(at / "rows.jsonl", LINES.encode("utf-8-sig")),
    "bom csv": lambda at: put(at / "r.csv", ("text,of\n" + "".join(f"{t},\n" for t in TEXTS)).encode("utf-8-sig")),
    "utf-16": lambda at: put(at / "rows.jsonl", LINES.encode("utf-16")),
    "utf-16 without mark": lambda at: put(at / "rows.md", "\n\n".join(TEXTS).encode("utf-16-le")),
    "save_to_disk": lambda at: saved(at) / "one",
    "late nulls": lambda at: parquet(
        at / "rows", *([row | {"more": more} for row in part] for part, more in ((ROWS[:5], None), (ROWS[5:], "x")))
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_form_is_read(tmp_path, form, streaming):
    if streaming and form == "late nulls":
        streaming = False  # streamed, datasets waits for seconds at the end
    config = DataConfig(dataset=str(FORMS[form](tmp_path)), streaming=streaming)
    assert sorted(text for text, *_ in read_documents(config)) == sorted(TEXTS)


def test_late_columns_of_long_lines_are_no_matter_while_streaming(tmp_path):
    """datasets takes a table's types from its first 10 MB."""
    rows = [{"text": "x" * 11_000_000, "meta": None}, {"text": "y", "meta": {"k": 1}, "more": [1]}]
    config = DataConfig(dataset=str(put(tmp_path / "rows.jsonl", lines(rows))), streaming=True)
    assert sorted(len(text) for text, *_ in read_documents(config)) == [1, 11_000_000]


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([{"messages": TURNS, "id": 3}], None),
        ([{"messages": PARTS, "id": 3}], "messages"),
        ([{"conversations": SHAREGPT, "system": "s"}], None),
        ([{"prompt": "Who?", "completion": "Me."}], None),
        ([{"prompt": TURNS[:1], "completion": TURNS[1:]}], None),
        ([{"talk": SHAREGPT, "text": "other"}], "talk"),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_conversations_are_rendered(tmp_path, rows, column, ending):
    path = put(tmp_path / "rows.jsonl", lines(rows)) if ending == ".jsonl" else parquet(tmp_path / "rows", rows)
    config = DataConfig(dataset=str(path), text_column=column)
    tokenizer = tokenizer_for(DEMO / "gpt2")
    assert list(read_documents(config, tokenizer)) == [Document("user: Who?\n\nassistant: Me.")]
    tokenizer.chat_template = TEMPLATE
    assert list(read_documents(config, tokenizer)) == [Document("<user>Who?<assistant>Me.")]
    blocks = read_blocks(config, tokenizer, 8)
    assert tokenizer.decode(blocks.input_ids.ravel()).startswith("<user>Who?<assistant>Me.")
    tokenizer.chat_template = STRICT
    with pytest.raises(DatasetError, match=r"template refuses .* user, assistant: roles must alternate") as caught:
        read_blocks(config, tokenizer, 8)
    assert caught.value.hint


def test_a_sequence_of_objects_as_older_datasets_have_it_is_a_conversation(tmp_path):
    rows = [{"messages": {"role": ["user", "assistant"], "content": ["Who?", "Me."]}}]
    found = read_documents(DataConfig(dataset=str(put(tmp_path / "rows.jsonl", lines(rows)))))
    assert next(found)[0] == rendered(TURNS)


def test_splits_of_folders(tmp_path):
    put(tmp_path / "rows" / "train.txt", "one")
    put(tmp_path / "rows" / "test.txt", "two")
    saved(tmp_path)
    for folder, split, count in (("rows", "test", 1), ("rows", "train+test", 2), ("both", "kept", 12)):
        found = list(read_documents(DataConfig(dataset=str(tmp_path / folder), split=split)))
        assert len(found) == count, (folder, split)
    for folder, names in (("rows", "train, test"), ("both", "kept, train")):
        with pytest.raises(DatasetError, match=f"has no split 'dev', but {names}") as caught:
            list(read_documents(DataConfig(dataset=str(tmp_path / folder), split="dev")))
        assert caught.value.hint == f"pass --split with one of: {names}"


def link(folder: Path) -> Path:
    put(folder.parent / "secret.txt", "x")
    put(folder / "a.txt", "y")
    (folder / "b.txt").symlink_to("../secret.txt")
    return folder


REFUSED = {
    "a link": (lambda at: link(at / "rows"), "b.txt in .* is a link out of the folder", "'rows/*.txt'"),
    "latin-1": (
        lambda at: put(at / "a.txt", "naïve".encode("latin-1")),
        "it is not UTF-8",
        "iconv -f latin1 -t utf-8",
    ),
    "utf-16 array": (
        lambda at: put(at / "a.json", json.dumps(ROWS, indent=1).encode("utf-16")),
        "it is UTF-16, not UTF-8",
        "iconv -f UTF-16 -t utf-8 a.json",
    ),
    "mixed": (
        lambda at: put(put(at / "rows" / "a.csv", "text\nx").parent / "b.txt", "y").parent,
        "files of several kinds: a.csv, b.txt",
        "one kind",
    ),
    "no data": (lambda at: put(at / "rows" / "a.py", "text").parent, "holds no file that can be read", ".jsonl"),
    "no match": (lambda at: at / "*.jsonl", "matches no file", ".jsonl"),
    "one is missing": (lambda at: f"{put(at / 'a.txt', 'x')},{at / 'b.txt'}", "b.txt does not exist", "exists"),
    "no conversation": (
        lambda at: put(at / "a.jsonl", lines([{"messages": [["Who?", "Me."]]}])),
        "column 'messages' of .* holds list, not text",
        "--text-column",
    ),
    "empty": (lambda at: put(at / "rows" / "a.txt", "").parent, "is empty", "text"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_form_is_named(tmp_path, form):
    make, said, hint = REFUSED[form]
    with pytest.raises(DatasetError, match=said) as caught:
        list(read_documents(DataConfig(dataset=str(make(tmp_path)))))
    assert hint in str(caught.value.hint)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", put(tmp_path / "file", "x") / "cache")
    with pytest.raises(DatasetError, match=r"cannot keep .* in its cache") as caught:
        list(read_documents(DataConfig(dataset=str(put(tmp_path / "rows.jsonl", LINES)))))
    assert "HF_DATASETS_CACHE" in str(caught.value.hint)


def test_zstandard_is_read_or_asked_for(tmp_path, monkeypatch):
    import pyarrow

    path = put(tmp_path / "rows.jsonl.zst", pyarrow.compress(LINES.encode(), "zstd", asbytes=True))
    config = DataConfig(dataset=str(path))
    if find_spec("zstandard") is not None:
        assert sorted(text for text, *_ in read_documents(config)) == sorted(TEXTS)
    monkeypatch.setattr("moeify.routing.dataset_files.find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"rows.jsonl.zst is packed by Zstandard") as caught:
        list(read_documents(config))
    assert caught.value.hint == "pip install zstandard"


def test_a_record_names_no_folders_of_several_files(tmp_path):
    step = Step(command="warmup", options={"dataset": f"a.jsonl,{tmp_path}/b.jsonl, ~/c/d.jsonl"}, results={})
    Record(source="dense", steps=(step,)).write(tmp_path)
    options = json.loads((tmp_path / "moeify.json").read_text())["steps"][0]["options"]
    assert options["dataset"] == "a.jsonl,b.jsonl,d.jsonl"
