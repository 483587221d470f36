"""A command derived from a config of every kind of field."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from moeify.cli._derived import derived
from moeify.cli._output import Output
from moeify.errors import ConfigError
from moeify.options import as_fields
from moeify.upcycling.config import UpcycleConfig

from .commands import ROOT


@dataclass(frozen=True, kw_only=True)
class Base:
    name: str
    """Who; never ``size``."""
    deep: bool = False
    """Look deeper."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    size: int | None = None
    """How many."""
    share: float = 0.5
    """How much."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    kept: bool = True
    """Whether it stays."""
    known: bool | None = None
    """Whether it is known; left out, it is looked up."""
    file: Path | None = None
    """Where."""
    sources: tuple[str, ...] = ()
    """From what."""
    numbers: int | tuple[int, ...] | None = None
    """Which."""
    shares: tuple[float, ...] = (1.0,)
    """How much of each."""


SEEN: list[Config] = []


def command(out: Output, config: Config, place: Annotated[str, typer.Argument(help="Where.")] = "here") -> None:
    """Do it."""
    assert place == "here"
    SEEN.append(config)
    out.document({"name": config.name})


def run(*arguments: str) -> Config:
    app = typer.Typer()
    app.command()(derived(command, ("share", "name")))
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    if done.exit_code:
        raise SystemExit(done.output)
    return SEEN.pop()


def test_what_is_left_out_is_the_config_s_default() -> None:
    assert run("--name", "x") == Config(name="x")


def test_every_kind_of_value(tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    config = run(
        "--name",
        "x",
        "--deep",
        "--size",
        "3",
        "--share",
        "0.25",
        "--mode",
        "slow",
        "--no-kept",
        "--no-known",
        "--file",
        "f",
        "--sources",
        "one, two",
        "--sources",
        str(folder),
        "--numbers",
        "0,3",
        "--shares",
        "2,1.5",
    )
    assert config == Config(
        name="x",
        deep=True,
        size=3,
        share=0.25,
        mode="slow",
        kept=False,
        known=False,
        file=Path("f"),
        sources=("one", "two", str(folder)),
        numbers=(0, 3),
        shares=(2.0, 1.5),
    )


def test_what_a_library_prints_is_no_part_of_the_document() -> None:
    def talking(out: Output, config: Config) -> None:
        """Do it."""
        print("logging to a folder")
        out.document({"name": config.name})

    app = typer.Typer()
    app.command()(derived(talking, ()))
    done = CliRunner().invoke(app, ["--name", "x", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == {"name": "x"}
    assert done.stderr == "logging to a folder\n"


@pytest.mark.parametrize("arguments", [(), ("--name", "x", "--size", "y"), ("--no-deep",)])
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--numbers", "1.5"), "--numbers '1.5' is no list of whole numbers", "--numbers 0,3"),
        (("--shares", "1,nan"), "--shares '1,nan' is no list of numbers", "--shares 0.5,0.5"),
    ],
)
def test_lists_of_something_else(arguments: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run("--name", "x", *arguments)
    assert hint in str(caught.value.hint)


def test_help_has_what_comes_first_before_the_panels() -> None:
    app = typer.Typer()
    app.command()(derived(command, ("share", "name")))
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    places = [text.index(part) for part in ("--share ", "--name ", "Details", "--deep ", "Output")]
    assert places == sorted(places)
    assert "Who; never --size." in text
    assert "fast|slow" in text


IN_A_FILE = """
name: x
size: 3
share: 1
deep: true
kept: false
mode: slow
file: a/b.txt
sources: [one, two]
numbers: [1, 2]
shares: 0.25
known: null
"""


def from_file(tmp_path: Path, text: str, *arguments: str, name: str = "run.yaml") -> Config:
    (tmp_path / name).write_text(text)
    return run("--config", str(tmp_path / name), *arguments)


def test_options_come_from_a_file_and_those_of_the_command_line_win(tmp_path: Path) -> None:
    read = Config(
        name="x",
        size=3,
        share=1.0,
        deep=True,
        kept=False,
        mode="slow",
        file=Path("a/b.txt"),
        sources=("one", "two"),
        numbers=(1, 2),
        shares=(0.25,),
    )
    assert from_file(tmp_path, IN_A_FILE) == read
    won = from_file(tmp_path, IN_A_FILE, "--name", "y", "--kept", "--sources", "z", "--size", "4")
    assert won == replace(read, name="y", kept=True, sources=("z",), size=4)
    assert [from_file(tmp_path, f"name: x\nshare: {said}").share for said in ("1e-4", "1.E-4", "+1e-4", ".0001")] == [
        1e-4
    ] * 4
    as_json = json.dumps({"name": "j", "numbers": [7]})
    assert from_file(tmp_path, as_json, name="run.json") == Config(name="j", numbers=(7,))


BOMB = "\n".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam: x", r"names 'nam', which is no option of this command\nhint: did you mean name\?"),
        ("none: x", r"names 'none', which is no option of this command\nhint: there are name, "),
        ("name: x\nsize: three", r"gives size as 'three', which is not a whole number"),
        ("name: x\nsize: 2.5", r"gives size as 2.5, which is not a whole number"),
        ("name: x\ndeep: 1", r"gives deep as 1, which is not true or false"),
        ("name: x\nsources: [1]", r"gives sources as \[1\], which is not a list, each text"),
        ("name: [1, 3]", r"gives name as \[1, 3\], which is not text\nhint: write it as text, as in name: '1,3'"),
        ("name: 0", r"gives name as 0, which is not text\nhint: write it as text, as in name: '0'"),
        ("name: x\nname: y", r"names 'name' twice"),
        (f"name: x\nsize:\n- &a0 [0]\n{BOMB}", r"has more than 1,000,000 values, by its aliases"),
        ("name: x\nsize: &a [*a]", r"has more than 1,000,000 values, by its aliases"),
        ("- x", "is no mapping of names to values"),
        ("!!python/object/apply:os.system [echo]", "is no valid YAML: could not determine a constructor"),
        ("name: [", "is no valid YAML"),
        ("size: 3", "Missing option '--name'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_sentence(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        from_file(tmp_path, text)
    assert re.search(said, str(ended.value).replace("\u2502", ""))


def test_an_option_that_is_written_in_two_ways_is_not_guessed() -> None:
    with pytest.raises(ConfigError, match="run names top_k twice, by top_k and top-k"):
        as_fields(UpcycleConfig, {"top_k": 1, "top-k": 2}, "run", {})


@pytest.mark.parametrize(
    ("command", "text", "field", "value"),
    [
        (["upcycle", "x"], "experts: 8", "num_experts", 8),
        (["upcycle", "x"], "num-experts: 8", "num_experts", 8),
        (["upcycle", "x"], "for: [llama.cpp]", "engines", ["llama.cpp"]),
        (["prune", "x"], "eval: true", "evaluate", True),
        (["add", "x"], "expert: sql", "experts", ["sql"]),
        (["extract", "x"], "expert: 3", "expert", ["3"]),
    ],
)
def test_a_file_takes_the_names_of_flags_as_well(
    command: list[str], text: str, field: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    name, *arguments = command
    context = ROOT.commands[name].make_context(name, [*arguments, "--config", str(tmp_path / "run.yaml")])
    assert context.params[field] == value


def test_a_file_names_an_option_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("experts: 8\nnum_experts: 4")
    with pytest.raises(SystemExit):
        ROOT.commands["upcycle"].main(["x", "--config", str(tmp_path / "run.yaml")])
    assert "run.yaml names num_experts twice, by experts and num_experts\nhint: " in capsys.readouterr().err
