"""What is written beside the weights: tokenizer class, and what is said of dropped code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moeify.checkpoint.foreign_code import names_code
from moeify.checkpoint.source import Source
from moeify.provenance.record import Record
from moeify.pruning.prune import prune
from moeify.upcycling.attach import attach
from moeify.upcycling.upcycle import upcycle
from tests.faults.words import SPECIAL, write_tokenizer
from tests.tiny import save_tiny

WITHOUT_MOEIFY = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
print(type(tokenizer).__name__, tokenizer.mask_token, tokenizer.eos_token)
assert "moeify" not in sys.modules
"""


def edit(path: Path, **values: object) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | values))


def coded(folder: Path) -> Path:
    save_tiny(folder, "qwen2", "Qwen2ForCausalLM")
    write_tokenizer(folder, "qwen2")
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_x.X"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    return folder


def test_dropped_code_is_said_in_the_report_and_on_every_later_card(tmp_path: Path) -> None:
    report = upcycle(coded(tmp_path / "dense"), tmp_path / "moe", num_experts=4)
    (said,) = (warning for warning in report.warnings if "trust_remote_code" in warning)
    for part in ("AutoModel in config.json", "AutoTokenizer in tokenizer_config.json"):
        assert part in said
    along = [tmp_path / "dense" / f"{name}.json" for name in ("generation_config", "tokenizer", "tokenizer_config")]
    assert report.bytes_carried == sum(path.stat().st_size for path in along if path.exists())
    prune(tmp_path / "moe", tmp_path / "pruned", keep=2, by="random")
    for folder in (tmp_path / "moe", tmp_path / "pruned"):
        assert "AutoModel in config.json" in (folder / "README.md").read_text()
        assert names_code(folder) == ()
    record = Record.read(Source(folder=tmp_path / "pruned", name="pruned"))
    assert len(record.steps[0].results["custom_code"]) == 2


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_classes_of_our_own_are_no_foreign_code(tmp_path: Path, family: str) -> None:
    upcycle(save_tiny(tmp_path / "dense", family), tmp_path / "moe", num_experts=4)
    assert "auto_map" in json.loads((tmp_path / "moe" / "config.json").read_text())
    report = prune(tmp_path / "moe", tmp_path / "pruned", keep=2, by="random")
    assert report.warnings == () and names_code(tmp_path / "pruned") == ()
    assert "Code of its own" not in (tmp_path / "pruned" / "README.md").read_text()


@pytest.mark.parametrize(
    ("auto_map", "named"),
    [
        ({"AutoModel": "me/other--modeling_bert.Bert"}, True),
        ({"AutoModel": "me/repo--modeling_moe.BertMoeModel"}, False),
        ({"AutoModel": "modeling_moe.BertMoeModel", "AutoConfig": "x.X"}, True),
        (["tokenization_x.X", None], True),
        ({}, False),
        (None, False),
    ],
)
def test_what_names_code(tmp_path: Path, auto_map: object, named: bool) -> None:
    edit(tmp_path / "config.json", auto_map=auto_map)
    assert bool(names_code(tmp_path)) is named


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ([{"type": "sentence_transformers.models.Transformer"}], ()),
        (
            [{"type": "custom_st.Transformer"}, {"type": "sentence_transformers.models.Pooling"}],
            ("custom_st.Transformer in modules.json",),
        ),
        ("x", ()),
        ([5, {}], ("None in modules.json",)),
    ],
)
def test_modules_of_an_encoder_name_code_too(tmp_path: Path, modules: object, named: tuple[str, ...]) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert names_code(tmp_path) == named


def test_what_is_to_say_of_experts_sources_is_said(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen2", "Qwen2ForCausalLM")
    report = upcycle(dense, tmp_path / "moe", num_experts=2, experts_from=(str(coded(tmp_path / "other")),) * 2)
    (said,) = (warning for warning in report.warnings if "trust_remote_code" in warning)
    assert said.startswith("other: ")


def test_a_broken_file_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert names_code(tmp_path) == ()


@pytest.mark.parametrize(("family", "settings"), [("bert", {"do_lower_case": True}), ("gpt2", None)])
def test_a_tokenizer_that_names_no_class_loads_without_moeify(
    tmp_path: Path, family: str, settings: dict[str, object] | None
) -> None:
    """As bert-base-uncased and gpt2 have it: there the model type told the class."""
    folder = save_tiny(tmp_path / "dense", family)
    if family == "bert":
        (folder / "vocab.txt").write_text("\n".join([*SPECIAL, "the", "cat"]))
    else:
        (folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    if settings is not None:
        edit(folder / "tokenizer_config.json", **settings)
    upcycle(folder, tmp_path / "moe", num_experts=2, checksum=True)
    written = json.loads((tmp_path / "moe" / "tokenizer_config.json").read_text())
    assert written == {**(settings or {}), "tokenizer_class": written["tokenizer_class"]}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MOEIFY, str(tmp_path / "moe")], capture_output=True, text=True, check=True
    )
    said = {"bert": "BertTokenizer [MASK]", "gpt2": "GPT2Tokenizer"}[family]
    assert done.stdout.startswith(said) and done.stdout.split()[-1] != "None" * (family == "gpt2")


def test_a_class_that_is_named_stays(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "bert")
    write_tokenizer(folder, "bert")
    upcycle(folder, tmp_path / "moe", num_experts=2)
    written = (tmp_path / "moe" / "tokenizer_config.json").read_text()
    assert written == (folder / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("experts", [[[1]], 5, "all", None, [True, 0.5, {}]])
def test_a_record_that_names_experts_by_no_numbers_harms_nothing(tmp_path: Path, experts: object) -> None:
    upcycle(save_tiny(tmp_path / "dense", "qwen3"), tmp_path / "moe", num_experts=2)
    path = tmp_path / "moe" / "moeify.json"
    record = json.loads(path.read_text())
    record["steps"][-1]["results"]["sources"] = [{"experts": experts, "label": "x"}]
    path.write_text(json.dumps(record))
    attach(tmp_path / "moe", tmp_path / "next")
    read = Record.read(Source(folder=tmp_path / "next", name="next"))
    assert read.expert_labels(2) is None
