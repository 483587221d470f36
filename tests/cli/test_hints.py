"""Every option that a sentence or a hint names is one that can be given."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import moeify
from moeify.errors import ConfigError
from tests.cli.commands import CONFIGS, FLAGS, ROOT

PACKAGE = Path(moeify.__file__).parent
FLAG = re.compile(r"(?<![\w{-])--[a-z][a-z_-]*\w(?![\w{-])")
COMMANDS_OF = {
    "evaluation": {"evaluate"},
    "hub": {"push"},
    "inspection": {"inspect"},
    "pruning": {"prune", "extract"},
    "upcycling": {"upcycle", "add", "attach", "verify"},
    "warming": {"warmup"},
}
OF_OTHERS = {"--nproc-per-node": "torchrun", "--fsdp_version": "accelerate", "--checksum": "writ"}
"""Options that a sentence may name where it also says whose they are, such as what was written."""
NEEDED = {
    "add": {"experts": ("x",)},
    "evaluate": {"tasks": ("x",)},
    "prune": {"keep": 2, "by": "random"},
    "warmup": {"dataset": "x"},
}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """What a module can say: its string literals, f-strings whole, without docstrings."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def allowed(path: Path, text: str) -> set[str]:
    """The options of the commands that ``text`` is about, by its place and by what it names."""
    layer = path.relative_to(PACKAGE).parts[0]
    named = {word for word in re.findall(r"\w+", text) if word in FLAGS}
    commands = (COMMANDS_OF.get(layer) or set(FLAGS)) | named
    other = {flag for flag, whose in OF_OTHERS.items() if whose in text}
    root = {flag for param in ROOT.params for flag in param.opts}
    return set().union(*(FLAGS[command] for command in commands), other, root)


def test_every_option_in_a_message_exists() -> None:
    unknown, seen = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "page.py":  # a style sheet, whose variables look like options
            continue
        for line, text in strings(path):
            found = set(FLAG.findall(text))
            seen += len(found)
            unknown += [f"{path}:{line} {flag}" for flag in found - allowed(path, text)]
    assert unknown == []
    assert seen > 200


def test_every_command_line_in_the_documentation_can_be_given() -> None:
    pages = [*PACKAGE.parent.glob("docs/**/*.md"), *PACKAGE.parent.glob("*.md")]
    unknown, seen = [], 0
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for command, rest in re.findall(r"moeify (\w+)([^\n`#]*)", text):
            if command in FLAGS:
                found = set(FLAG.findall(rest))
                seen += len(found)
                unknown += [f"{page.name}: {command} {f}" for f in found - FLAGS[command]]
    assert unknown == []
    assert seen > 50


@pytest.mark.parametrize("command", ROOT.commands)
def test_what_a_config_refuses_names_options_of_its_command(command: str) -> None:
    config, refused = CONFIGS[command], 0
    for field in dataclasses.fields(config):
        for value in (-1, 0, 1 << 70, float("nan"), "no such", True, ("", ""), Path("x")):
            try:
                config(**{**NEEDED.get(command, {}), field.name: value})
            except ConfigError as error:
                refused += 1
                said = set(FLAG.findall(f"{error.message} {error.hint or ''}"))
                assert said <= FLAGS[command], f"{field.name}={value!r}: {error.message}"
                assert error.hint, error.message
            except (TypeError, ValueError, AttributeError):
                pass  # a value of another type, which the command line never makes
    assert refused >= 1
