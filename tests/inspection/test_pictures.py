"""Pictures and pages: complete, well-formed, the same every time, nothing from outside."""

import base64
import json
import re
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from moeify.errors import ConfigError, MissingExtraError, OutputError
from moeify.inspection.config import InspectConfig, check_drawable, check_image
from moeify.inspection.page import render_page, save_page
from moeify.inspection.plots import figures, save_plot
from moeify.inspection.report import InspectReport
from tests.inspection.report_folder import full_report

_OF_ALL_LAYERS = ("load, relative", "gate mass", "balance and decision", "distance to the nearest")
_TITLES = (*_OF_ALL_LAYERS, "experts that meet", "part of a domain")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> InspectReport:
    return full_report(tmp_path_factory.mktemp("report"))


def test_svg_is_labelled_text_and_always_the_same(report: InspectReport, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save_plot(report, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    drawn = ElementTree.parse(tmp_path / "a.svg")
    labels = " ".join(element.text or "" for element in drawn.iter() if element.tag.endswith("text"))
    for title in (*_TITLES, "layer", "expert", "code", "<b>prose</b>"):
        assert title in labels


def test_png_is_a_picture(report: InspectReport, tmp_path: Path) -> None:
    save_plot(report, tmp_path / "a.png")
    head = (tmp_path / "a.png").read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:24])
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert width > 800 and height > 1000


def test_page_holds_every_table_and_figure(report: InspectReport) -> None:
    page = render_page(report)
    for table in ("overview", "layers", "experts", "weights", "parts"):
        assert f'<table id="{table}"' in page
    assert page.count("<svg") == len(figures(report)) == len(_OF_ALL_LAYERS)
    assert page == render_page(report)
    held = re.search(r'id="layer-data">(.*?)</script>', page)
    assert held is not None
    layers = json.loads(held[1])["layers"]
    for found, layer in zip(layers, report.layers, strict=True):
        sums = report.sums[layer.layer]
        assert found["load"] == pytest.approx(layer.routing["utilization"], rel=5e-3)
        assert len(found["tokens"]) == len(found["domains"]) == sums.num_experts
        square = np.frombuffer(base64.b64decode(found["meeting"]), np.uint8).reshape(4, 4)
        ratio = np.clip(sums.coactivation * 3, 0, 2)  # two of four experts: one of the three others by chance
        assert np.allclose((square - 1.0) / 127 * ~np.eye(4, dtype=bool), ratio * ~np.eye(4, dtype=bool), atol=5e-3)


def test_page_fetches_nothing(report: InspectReport) -> None:
    page = render_page(report)
    links = re.findall(r'(?:\bsrc|\bhref|action)\s*=\s*"([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert links
    assert all(link.startswith(("#", "data:image/png")) for link in links)
    assert "@import" not in page and "fetch(" not in page


def test_page_escapes_what_files_say(report: InspectReport) -> None:
    page = render_page(report)
    assert "<b>prose</b>" not in page
    assert "&lt;b&gt;prose&lt;/b&gt;" in page


def test_ids_occur_once(report: InspectReport) -> None:
    ids = re.findall(r'\bid="([^"]*)"', render_page(report))
    assert len(ids) == len(set(ids))


def test_missing_matplotlib_names_the_extra(
    report: InspectReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as caught:
        save_plot(report, tmp_path / "a.svg")
    assert caught.value.hint == "pip install 'moeify[plot]'"


def test_bad_targets_are_refused_before_any_work(tmp_path: Path) -> None:
    config = InspectConfig(weights=True)
    with pytest.raises(ConfigError, match="ending"):
        check_image(tmp_path / "plot.txt")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_drawable(tmp_path / "nowhere" / "plot.svg", config)
    with pytest.raises(ConfigError, match="would be empty"):
        check_drawable(tmp_path / "plot.svg", InspectConfig())


def test_failed_writing_is_an_error_of_its_own(report: InspectReport, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        save_page(report, tmp_path / "missing" / "page.html")
