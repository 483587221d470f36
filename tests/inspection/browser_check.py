"""The page in headless Chromium: opens, sorts, fetches nothing. Not in the default set.

Run with ``pytest tests/inspection/browser_check.py`` where ``chromium`` is installed.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from moeify.families.problems import Problem
from moeify.inspection.page import render_page
from tests.inspection.report_folder import full_report

_PROBE = """<script>
const column = (n) => [...document.querySelectorAll(`#experts tbody tr`)]
  .map((row) => Number(row.cells[n].dataset.value));
const before = column(2);
const button = document.querySelectorAll("#experts th button")[2];
button.click(); const up = column(2);
button.click(); const down = column(2);
const heads = [...document.querySelectorAll("#experts th")].map((h) => h.getAttribute("aria-sort"));
const broken = [...document.querySelectorAll("svg image")]
  .filter((i) => i.getBoundingClientRect().width < 5).length;
addEventListener("load", () => {
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify({before, up, down, heads, fetched, broken, wide});
});
</script></body>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(tmp_path: Path, scheme: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "install chromium to run this check"
    page = tmp_path / "page.html"
    page.write_text(render_page(full_report(tmp_path)).replace("</body>", _PROBE))
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1100,900",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            "--virtual-time-budget=5000",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'page.png'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    seen = json.loads(unescape(title[1]))
    assert seen["up"] == sorted(seen["before"])
    assert seen["down"] == sorted(seen["before"], reverse=True)
    assert seen["heads"][2] == "descending"
    assert [name for name in seen["fetched"] if not name.startswith("data:")] == []
    assert (seen["broken"], seen["wide"]) == (0, False)
    refused = [line for line in done.stderr.splitlines() if "Refused" in line]
    assert refused == []


def test_text_from_files_is_text(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "install chromium to run this check"
    mark = "document.documentElement.setAttribute('harmed', '')"
    nasty = [
        f"<script>{mark}</script>",
        f'<img src=x onerror="{mark}">',
        f'</title><svg onload="{mark}">',
        f'"><b autofocus onfocus="{mark}">',
        "\x1b[31m",
        "$x$",
    ]
    report = full_report(tmp_path)
    report.source = "".join(nasty)
    report.notes = nasty
    report.domain_names = tuple(nasty[: len(report.domain_names)])
    report.problems = [Problem(kind="x", message=text) for text in nasty]
    page = tmp_path / "page.html"
    page.write_text(render_page(report))
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=5000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root is not None and "harmed" not in root[0]
    assert "&lt;script&gt;" in done.stdout and done.stdout.count("<img") == 0
