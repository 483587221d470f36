"""Keys that name code go, everything else stays as it is."""

import json
from pathlib import Path

import pytest

from moeify.checkpoint.foreign_code import cleaned, without_code
from moeify.errors import CheckpointError


def test_keys_go_at_any_depth() -> None:
    value = {"a": [{"auto_map": 1, "b": {"attn_implementation": "x/y", "c": 2}}], "custom_pipelines": 0}
    assert without_code(value) == {"a": [{"b": {"c": 2}}]}


@pytest.mark.parametrize("key", ["auto_map", "\\u0061uto_map", "auto\\u005fmap"])
def test_a_key_is_found_however_it_is_spelt(tmp_path: Path, key: str) -> None:
    path = tmp_path / "tokenizer_config.json"
    text = '{"KEY": {"AutoTokenizer": ["evil.Evil", null]}, "x": "\\u00e9"}'
    path.write_text(text.replace("KEY", key))
    assert json.loads(cleaned(path) or "") == {"x": "é"}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name, text in (
        ("a.json", '{"x":  "\\u0041 \\u0120"}'),
        ("b.json", "[1, 2"),
        ("c.txt", '"auto_map"'),
        ("tokenizer.json", '{"auto_map": 1}'),
        ("d.json", '{"x": "auto_map"}'),
    ):
        (tmp_path / name).write_text(text)
        assert cleaned(tmp_path / name) is None


def test_what_hides_in_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"auto_map": 1, "auto_map": 2}')
    with pytest.raises(CheckpointError, match="twice"):
        cleaned(tmp_path / "a.json")
