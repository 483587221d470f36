"""A command derived from a config of every kind of field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from moeify.cli._derived import derived
from moeify.cli._output import Output
from moeify.errors import ConfigError


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
