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
CAPABILITIES = {"upcycling", "warming", "inspection", "pruning", "hub"}
BELOW = {
    "errors": set(),
    "modeling": set(),
    "demo": set(),
    "checkpoint": {"errors"},
    "families": {"errors", "checkpoint"},
    "provenance": {"errors", "checkpoint", "families", "modeling"},
    "routing": {"errors", "checkpoint", "families", "modeling", "provenance"},
    **{
        name: {"errors", "checkpoint", "families", "modeling", "provenance", "routing"}
        for name in CAPABILITIES
    },
}
HEAVY = {"torch", "transformers", "datasets", "numpy", "accelerate", "matplotlib"}
TERMINAL = {"typer", "rich", "click"}
TRAVELLING = [path for path in FILES if path.parent.name == "modeling" and path.stem not in (
    "__init__", "registration")]  # fmt: skip


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    here = layer(path)
    if here in ("cli", "__init__", "__main__"):
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("moeify.")}
    assert used <= BELOW[here] | {here}


def test_no_package_has_the_name_of_a_function():
    """Importing a package binds its name, which would hide the function of that name."""
    inner = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    inner |= {path.stem for path in PACKAGE.glob("*.py")}
    assert not inner & set(moeify.__all__)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if layer(path) == "cli":
        return
    assert not {name.split(".")[0] for name in imports(path)} & TERMINAL
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit"), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_modules_import_nothing_heavy(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    light = (
        layer(path) in ("errors", "families", "cli", "__init__", "__main__")
        or place.name == "config.py"
        or (layer(path) == "checkpoint" and place.stem in ("source", "header", "staging"))
    )
    if light:
        used = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not used & HEAVY


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda p: p.name)
def test_modeling_files_can_travel(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} <= {
        "torch", "transformers", "collections", "typing", "dataclasses", "functools", "__future__",
        "inspect", "math",
    }  # fmt: skip
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module, "transformers does not see `from . import x`"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    limit = 700 if layer(path) == "modeling" else 400
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize(
    "statement",
    ["import moeify", "import moeify.cli.app", "import moeify.families.registry",
     "import moeify.checkpoint.source, moeify.checkpoint.header, moeify.checkpoint.staging"],
)  # fmt: skip
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
