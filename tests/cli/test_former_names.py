"""Scripts written for the first names of options go on working, and are told of today's."""

import pytest

from moeify.cli._former_names import _OPTIONS, todays_names
from tests.cli.commands import FLAGS


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("warmup M --batch-size 4 --dense D", "warmup M --batch 4 --reference D"),
        ("prune M --experts=all:1 --batch-size=2", "prune M --drop=all:1 --batch=2"),
        ("extract M --experts 0,3 --weights 1,2", "extract M --expert 0,3 --shares 1,2"),
        ("upcycle M --add-experts D --add-experts=E", "add M --expert D --expert=E"),
        ("verify A B --length 8", "verify A B --seq-len 8"),
    ],
)
def test_former_names_are_read_as_todays(given, read, capsys):
    assert todays_names(given.split()) == read.split()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 - given.startswith("verify")
    assert all(line.startswith("warning: --") and " is now --" in line for line in said)


def test_todays_names_pass_in_silence(capsys):
    line = ["upcycle", "base", "--experts", "8", "--seed=3"]
    assert todays_names(line) == line
    assert todays_names([]) == [] and todays_names(["--version"]) == ["--version"]
    assert capsys.readouterr().err == ""


def test_no_former_name_is_one_of_todays_options_of_its_command():
    for command, names in _OPTIONS.items():
        assert not names.keys() & set(FLAGS[command])
        assert set(names.values()) <= set(FLAGS[command])
