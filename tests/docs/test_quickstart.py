"""The quickstart as it is written, but for the set-up."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moeify.demo
from moeify.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.md"
DEMO = Path(moeify.demo.__file__).parent


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-gpt2").symlink_to(DEMO / "gpt2")
    (tmp_path / "text.jsonl").symlink_to(DEMO / "text.jsonl")
    lines = re.findall(r"^(?:\$ )?moeify (.+)$", PAGE.read_text("utf-8"), re.M)
    assert [line.split()[0] for line in lines] == ["upcycle", "verify", "upcycle", "warmup", "inspect"]
    shown = ""
    for line in lines:
        run = CliRunner().invoke(app, shlex.split(line))
        assert run.exit_code == 0, run.output
        shown += run.stdout
    for said in re.findall(r"^ (parameters|top-1 agreement) +(.+)$", PAGE.read_text("utf-8"), re.M):
        assert re.search(rf"{said[0]} +{re.escape(said[1][:3])}", shown), said
    for text in (PAGE.read_text("utf-8"), shown):  # rounding differs from processor to processor
        (difference,) = re.findall(r"^ relative diff +(\S+)", text, re.M)
        assert 0 < float(difference) < 1e-6
