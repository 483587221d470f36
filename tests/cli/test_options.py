"""Options are the fields of the configs: each has one, with its default and its docstring."""

from __future__ import annotations

import dataclasses

import pytest

import moeify
from moeify.cli._field_docs import field_docs
from moeify.cli._option_table import flag_name
from moeify.errors import ConfigError
from moeify.upcycling.config import RouterTextConfig, UpcycleConfig
from tests.cli.commands import CONFIGS, FLAGS, ROOT


def test_every_config_is_a_command_s() -> None:
    public = {getattr(moeify, name) for name in moeify.__all__ if name.endswith("Config")}
    assert public == set(CONFIGS.values())
    assert set(CONFIGS) == set(ROOT.commands)


@pytest.mark.parametrize("command", ROOT.commands)
def test_every_field_is_an_option_with_its_default_and_its_docstring(command: str) -> None:
    options = {param.opts[0]: param for param in ROOT.commands[command].params}
    for field in dataclasses.fields(CONFIGS[command]):
        option = options[flag_name(field.name)]
        if field.default is dataclasses.MISSING:
            assert option.required, field.name
        else:
            assert option.default == (None if field.default == () else field.default), field.name
        assert option.help.endswith("."), field.name
        for markup in ("``", "[", "None "):  # of Python, and what rich would swallow
            assert markup not in option.help, field.name


@pytest.mark.parametrize("command", ROOT.commands)
def test_ten_options_at_most_come_first(command: str) -> None:
    params = [p for p in ROOT.commands[command].params if p.opts[0].startswith("-")]
    panels = [param.rich_help_panel for param in params]
    assert 1 <= panels.count(None) <= 10
    assert panels[: panels.count(None)] == [None] * panels.count(None)
    assert panels[-1] == "Output"


def test_a_word_means_one_thing() -> None:
    """A flag is a switch everywhere or nowhere, and what had several names has one."""
    kinds: dict[str, set[bool]] = {}
    for command in ROOT.commands.values():
        for param in command.params:
            kinds.setdefault(param.opts[0], set()).add(getattr(param, "is_flag", False))
    assert [flag for flag, found in kinds.items() if len(found) > 1] == []
    assert not {"--batch-size", "--length", "--add-experts"} & set().union(*FLAGS.values())
    assert [name for name, flags in FLAGS.items() if "--dense" in flags] == ["prune"]
    assert [name for name, flags in FLAGS.items() if "--weights" in flags] == ["inspect"]


def test_docstrings_are_those_under_the_fields_inherited_ones_too() -> None:
    docs = field_docs(UpcycleConfig)
    assert docs["top_k"] == "Experts that each token visits."
    assert docs["seed"] == field_docs(RouterTextConfig)["seed"]
    assert docs["entropy"].endswith("left out, as sure as the text allows.")  # of two lines
    assert set(docs) == {field.name for field in dataclasses.fields(UpcycleConfig)}


@pytest.mark.parametrize("option", ["fit", "balance", "train", "loss"])
@pytest.mark.parametrize("value", [None, ["x"], {}])
def test_a_choice_that_is_no_name_is_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} .* is unknown"):
        moeify.WarmupConfig(dataset="text.txt", **{option: value})
