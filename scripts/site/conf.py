"""How Sphinx makes a site of docs/: the same Markdown, links and anchors checked, nothing fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"

project = "moeify"
extensions = ["myst_parser"]
myst_heading_anchors = 4
exclude_patterns = ["requirements.txt"]
html_theme = "furo"
html_title = "moeify"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}


def _as_a_site(app: Any, name: str, source: list[str]) -> None:
    """Pages that list others lead to them in the sidebar too; what is not in docs/ is named without a link."""
    there = (DOCS / name).parent

    def inside(link: re.Match[str]) -> str:
        place = (there / link[2]).resolve()
        return link[0] if place.is_relative_to(DOCS) else f"{link[1]} (`{place.relative_to(DOCS.parent)}`)"

    text = re.sub(r"\[([^]]*)\]\((\.\./[^)]*)\)", inside, source[0])
    if name.rpartition("/")[2] == "index":
        pages = dict.fromkeys(re.findall(r"\]\(([\w/-]+)\.md\)", text))
        listed = "\n".join(page for page in pages if (there / f"{page}.md").exists())
        text += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    source[0] = text


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _as_a_site)
