"""The layers hold: who imports whom, what is light, who may print, and how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moeify
from moeify.families.registry import DENSE_LAYOUTS, MOE_LAYOUTS

PACKAGE = Path(moeify.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
CAPABILITIES = {"upcycling", "warming", "training", "inspection", "pruning", "hub", "evaluation"}
LOWEST = {"errors", "tables", "look", "options", "progress", "modeling", "demo"}
BELOW = {
    **{name: {"errors"} for name in LOWEST},
    "checkpoint": LOWEST,
    "families": {*LOWEST, "checkpoint"},
    "provenance": {*LOWEST, "checkpoint", "families"},
    "routing": {*LOWEST, "checkpoint", "families", "provenance"},
    **{name: {*LOWEST, "checkpoint", "families", "provenance", "routing"} for name in CAPABILITIES},
}
ABOVE = ("cli", "extend", "replaying", "__init__", "__main__")
HEAVY = {"torch", "transformers", "datasets", "numpy", "accelerate", "matplotlib", "peft", "bitsandbytes"}
TERMINAL = {"typer", "rich", "click"}
STAYING = ("__init__", "registration")
TRAVELLING = [p for p in FILES if p.parent.name == "modeling" and p.stem not in STAYING]
TRAVELS = {
    *("torch", "transformers", "collections", "typing", "dataclasses", "functools"),
    *("__future__", "contextvars", "inspect", "math", "re", "types"),
}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names that a file imports; those under TYPE_CHECKING do not count at run time."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = list(tree.body) if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


def layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def offenders(wrong: dict[Path, set[str]]) -> list[str]:
    """Files with what is wrong in each."""
    found = ((path.relative_to(PACKAGE), names) for path, names in wrong.items() if names)
    return [f"{path}: {', '.join(sorted(names))}" for path, names in found]


def test_imports_point_downwards() -> None:
    wrong = {}
    for path in FILES:
        if (here := layer(path)) not in ABOVE:
            used = {name.split(".")[1] for name in imports(path) if name.startswith("moeify.")}
            wrong[path] = used - BELOW[here] - {here}
    assert not offenders(wrong)


def test_no_package_has_the_name_of_a_function():
    """Importing a package binds its name, which would hide the function of that name."""
    inner = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    inner |= {path.stem for path in PACKAGE.glob("*.py")}
    assert not inner & set(moeify.__all__)


def test_only_the_command_line_prints_and_exits() -> None:
    wrong = {}
    for path in FILES:
        if layer(path) != "cli":
            tree = ast.walk(ast.parse(path.read_text()))
            called = {ast.unparse(node.func) for node in tree if isinstance(node, ast.Call)}
            used = {name.split(".")[0] for name in imports(path)} & TERMINAL
            wrong[path] = used | called & {"print", "sys.exit", "exit", "quit"}
    assert not offenders(wrong)


def is_light(path: Path) -> bool:
    light = {"errors", "tables", "look", "options", "progress", "families", *ABOVE}
    files = ("source", "header", "staging")
    return (
        layer(path) in light
        or path.name in ("config.py", "criteria.py", "balances.py", "fits.py")
        or (layer(path) == "checkpoint" and path.stem in files)
    )


def test_light_modules_import_nothing_heavy() -> None:
    assert not offenders(
        {
            path: {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY
            for path in FILES
            if is_light(path)
        }
    )


def test_modeling_files_can_travel() -> None:
    wrong = {}
    for path in TRAVELLING:
        wrong[path] = {name.split(".")[0] for name in imports(path)} - TRAVELS
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and (node.level > 1 or not node.module):
                wrong[path].add(ast.unparse(node))  # transformers does not see `from . import x`
    assert not offenders(wrong)


def test_files_stay_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    most = {path: 700 if layer(path) == "modeling" else 400 for path in FILES}
    assert not [f"{path}: {lines}" for path, lines in lengths.items() if lines > most[path]]


@pytest.mark.parametrize(
    "statement",
    [
        "import moeify",
        "import moeify.cli.app",
        "import moeify.extend as e; e.Criterion, e.Balance, e.Recipe, e.Conversion",
        "import moeify.families.registry",
        "import moeify.checkpoint.source, moeify.checkpoint.header, moeify.checkpoint.staging",
    ],
)
def test_light_imports_load_nothing_heavy(statement: str) -> None:
    check = f"import sys; {statement}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_exists() -> None:
    for name in moeify.__all__:
        assert getattr(moeify, name) is not None
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.name} has no docstring"


def test_facts_about_model_types_stand_in_families() -> None:
    """A name of a model type elsewhere is a fact that another type's file could not change."""
    known = {*DENSE_LAYOUTS, *MOE_LAYOUTS}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value}"
        for path in FILES
        if layer(path) not in ("families", "modeling")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in known
    ]
    assert not found
