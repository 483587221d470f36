"""What the docstrings under a config's fields say, read from its source."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache


def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of ``config``, those it inherits included, on one line."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        found |= _of_module(kind.__module__).get(kind.__name__, {})
    return found


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """The docstrings of every class of a module; Python keeps none of them at run time."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except OSError:  # installed without sources: options without help are better than none
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, said in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant):
            found[field.target.id] = " ".join(str(said.value.value).split())
    return found
