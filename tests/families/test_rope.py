"""Rotary positions survive in both notations of config.json, and differences between them show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import moeify
from moeify.families.rope import spelled_rope
from tests.families.edited import edit_config, read_config
from tests.tiny import save_tiny
from tests.upcycling.specialists import specialist

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 24},
    "llama3": {"factor": 4.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"original_max_position_embeddings": 16, "long_factor": [2.0] * 4, "short_factor": [1.0] * 4},
}
SIZES = {"hidden_size": 32, "head_dim": 8}


def dense_of(folder: Path, family: str, kind: str, notation: str) -> Path:
    """A checkpoint of transformers 5, its config rewritten as transformers 4 has it if asked."""
    rope = {"rope_type": kind, "rope_theta": 7000.0, **ROPES[kind]}
    save_tiny(folder, family, **SIZES, rope_parameters=rope)
    if notation == "old":
        scaling = {"type": kind, **ROPES[kind]} if kind != "default" else None
        edit_config(folder, rope_parameters=..., rope_theta=7000.0, rope_scaling=scaling)
    return folder


def loaded(folder: Path) -> dict[str, Any]:
    rope = dict(transformers.AutoConfig.from_pretrained(folder).rope_parameters)
    rope.pop("type", None)  # the old name of rope_type, which stands beside it
    return rope


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize(("notation", "family"), [("new", "qwen2"), ("old", "qwen3")])
def test_both_notations_are_written_and_agree(tmp_path: Path, family: str, notation: str, kind: str) -> None:
    dense = dense_of(tmp_path / "dense", family, kind, notation)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    moeify.extract(tmp_path / "moe", tmp_path / "again")
    expected = loaded(dense)
    assert expected["rope_type"] == kind
    for folder in (tmp_path / "moe", tmp_path / "again"):
        written = read_config(folder)
        assert loaded(folder) == expected
        assert written["rope_parameters"] == expected
        assert written["rope_theta"] == 7000.0
        scaling = written.get("rope_scaling")
        assert (scaling is None) == (kind == "default")
        if scaling:
            assert scaling.items() >= {"rope_type": kind, "type": kind, **ROPES[kind]}.items()
            assert "rope_theta" not in scaling
        # Each notation alone says the same: engines read one or the other.
        for key in ("rope_parameters", "rope_scaling"):
            if key == "rope_parameters" or scaling:
                edit_config(folder, **{key: ...})
                assert loaded(folder) == expected
                edit_config(folder, **{key: written[key]})
    assert moeify.verify(dense, tmp_path / "moe", seq_len=32).relative_diff <= 1e-6


def test_a_part_of_the_head_that_turns_is_said_in_both(tmp_path: Path) -> None:
    dense = dense_of(tmp_path / "dense", "qwen3", "linear", "new")
    rope = {**read_config(dense)["rope_parameters"], "partial_rotary_factor": 0.5}
    edit_config(dense, rope_parameters=rope)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    assert read_config(tmp_path / "moe")["partial_rotary_factor"] == 0.5
    assert loaded(tmp_path / "moe") == loaded(dense) == rope


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_only_transformers_5_can_say_is_left_as_it_is(tmp_path: Path, family: str) -> None:
    dense = dense_of(tmp_path / "dense", family, "default", "new")
    by_kind = {"full_attention": {"rope_type": "default", "rope_theta": 7000.0}}
    edit_config(dense, rope_parameters=by_kind)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2)
    written = read_config(tmp_path / "moe")
    assert written["rope_parameters"] == by_kind
    assert "rope_scaling" not in written


def test_yarn_without_a_length_that_it_began_with() -> None:
    written = spelled_rope({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}})
    assert written["rope_scaling"] == {"rope_type": "yarn", "factor": 2.0, "type": "yarn"}


def warnings(base: Path, other: Path) -> str:
    report = moeify.upcycle(base, dry_run=True, num_experts=2, experts_from=[base, other])
    return "\n".join(report.warnings)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_sources_in_other_notations_differ_by_what_they_mean(tmp_path: Path, family: str, kind: str) -> None:
    new = dense_of(tmp_path / "new", family, kind, "new")
    old = specialist(dense_of(tmp_path / "base", family, kind, "old"), tmp_path / "old", 1)
    assert warnings(new, old) == warnings(old, new) == ""
    edit_config(old, rope_theta=5e5)
    assert "500000.0" in warnings(new, old)
    edit_config(old, rope_theta=7000.0, rope_scaling={"type": "linear", "factor": 3.0})
    for pair in ((new, old), (old, new)):
        assert "rope_parameters" in warnings(*pair)
        assert "linear" in warnings(*pair)


def test_a_source_that_is_silent_has_the_default(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "qwen3")
    silent = specialist(base, tmp_path / "silent", 1)
    edit_config(silent, rope_parameters=...)
    assert warnings(base, silent) == ""
    edit_config(base, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert "rope_theta" in warnings(base, silent)


def test_a_newcomer_with_other_positions_is_named(tmp_path: Path) -> None:
    base = dense_of(tmp_path / "base", "qwen3", "default", "new")
    moeify.upcycle(base, tmp_path / "moe", num_experts=2)
    other = dense_of(tmp_path / "other", "qwen3", "yarn", "old")
    report = moeify.add_experts(tmp_path / "moe", experts=[other], dry_run=True)
    assert any("yarn" in warning for warning in report.warnings)
    same = moeify.add_experts(tmp_path / "moe", experts=[base], dry_run=True)
    assert same.warnings == ()
