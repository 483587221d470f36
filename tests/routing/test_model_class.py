"""The class of a checkpoint whose config.json names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeify.errors import CheckpointError
from moeify.routing.loading import load_model
from tests.families.edited import edit_config
from tests.families.published_models import save, tiny


def test_a_native_mixture_of_no_dense_type_is_a_causal_model(tmp_path: Path) -> None:
    folder = save(tiny("olmoe", tied=False), tmp_path / "moe")
    edit_config(folder, architectures=...)
    assert type(load_model(folder)).__name__ == "OlmoeForCausalLM"


def test_a_class_that_nobody_knows_is_named(tmp_path: Path) -> None:
    folder = save(tiny("mixtral", tied=False), tmp_path / "moe")
    edit_config(folder, architectures=["MixtralForDancing"])
    with pytest.raises(CheckpointError, match="no class 'MixtralForDancing'"):
        load_model(folder)
