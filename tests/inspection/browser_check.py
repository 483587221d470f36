"""The page in headless Chromium: opens, sorts, fetches nothing. Not in the default set.

Run with ``pytest tests/inspection/browser_check.py`` where ``chromium`` is installed.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from moeify.families.problems import Problem
from moeify.inspection.page import render_page
from moeify.inspection.report import InspectReport
from tests.inspection.report_folder import full_report, large_report

_PROBE = """<script>{
const column = (n) => [...document.querySelectorAll(`#experts tbody tr`)]
  .map((row) => Number(row.cells[n].dataset.value));
const classes = () => [...document.querySelectorAll(".piece")].map((piece) => piece.className.match(/e(\\d+)/)[1]);
const input = (id, value) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event("input"));
};
const start = document.getElementById("layer").value;
const before = column(2);
const button = document.querySelectorAll("#experts th button")[2];
button.click(); const up = column(2);
button.click(); const down = column(2);
const heads = [...document.querySelectorAll("#experts th")].map((h) => h.getAttribute("aria-sort"));
const last = document.getElementById("layer").max;
input("layer", last);
const chosen = document.querySelector("#layers .chosen").rowIndex;
const later = {layers: column(0), loads: column(2), classes: classes(), chosen};
let slice = null;
if (document.getElementById("slice")) { input("slice", 1); slice = classes(); }
const tokens = document.querySelectorAll(".piece");
tokens[1].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
const tip = document.getElementById("tip").textContent;
document.querySelector("#legend button").click();
const alone = document.querySelectorAll(".piece.on").length;
input("search", "WORD"); const found = column(0).length;
input("search", "nowhere to be found"); const none = column(0).length;
input("search", "");
const canvas = document.getElementById("meeting");
const painted = new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size;
const broken = [...document.querySelectorAll("svg image")]
  .filter((i) => i.getBoundingClientRect().width < 5).length;
addEventListener("load", () => {
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify({start, before, up, down, heads, last, later, slice, tip, alone, found, none,
    painted, fetched, broken, wide});
});
}</script></body>"""


def _browsed(page: Path, *options: str) -> tuple[str, str]:
    """What the page is once its scripts have run, and what the browser said."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "install chromium to run this check"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", *options]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout, done.stderr


_REPORTS: dict[str, Callable[[Path], InspectReport]] = {
    "small": full_report,
    "large": lambda _: large_report(),
    "sliced": lambda _: large_report(layers=12, experts=16, top_k=4, slices=4),
}


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [("small", 1, 1280), ("small", 0, 500), ("large", 1, 1280), ("large", 0, 500), ("sliced", 0, 1280)],
)
def test_page_in_a_browser(name: str, scheme: int, width: int, tmp_path: Path) -> None:
    report, page = _REPORTS[name](tmp_path), tmp_path / "page.html"
    text = render_page(report)
    assert len(text.encode()) < 5_000_000
    page.write_text(text.replace("</body>", _PROBE))
    colours = f"--blink-settings=preferredColorScheme={scheme}"
    shown, said = _browsed(page, f"--window-size={width},900", colours)
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None
    seen = json.loads(unescape(title[1]))
    assert int(seen["start"]) == report.layers.index(report.telling)
    assert seen["before"] == pytest.approx(report.telling.routing["utilization"], rel=5e-3)
    assert seen["up"] == sorted(seen["before"]) and seen["down"] == sorted(seen["before"], reverse=True)
    assert seen["heads"][2] == "descending"
    later, routes, place = seen["later"], report.tokens, int(seen["last"])
    assert routes is not None
    assert set(later["layers"]) == {report.layers[place].layer} and later["chosen"] == place + 1
    assert later["loads"] == sorted(later["loads"], reverse=True)
    each = routes.num_experts // routes.slices
    assert list(map(int, later["classes"])) == (routes.first(place) % each).tolist()
    first = routes.first(place, 1 if routes.slices > 1 else 0)
    assert seen["slice"] is None or list(map(int, seen["slice"])) == (first % each).tolist()
    weights = zip(routes.experts(place)[1], routes.weights(place)[1], strict=True)
    assert seen["tip"].split("\n") == [
        f"{routes.name(expert)}: {round(1000 * weight) / 1000:.3f}" for expert, weight in weights
    ]
    assert seen["alone"] == int((first == first.min()).sum())
    assert seen["none"] == 0 and (name == "small" or seen["painted"] > 20)
    assert [name for name in seen["fetched"] if not name.startswith("data:")] == []
    assert (seen["broken"], seen["wide"]) == (0, False)
    assert not [line for line in said.splitlines() if "Refused" in line or "Uncaught" in line]


def test_text_from_files_is_text(tmp_path: Path) -> None:
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
    shown, _ = _browsed(page)
    root = re.search(r"<html[^>]*>", shown)
    assert root is not None and "harmed" not in root[0]
    assert "&lt;script&gt;" in shown and shown.count("<img") == 0
