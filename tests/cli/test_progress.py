"""What is seen of long work: bars on a terminal, lines in a log, nothing where nobody asked."""

from __future__ import annotations

import json
import re
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import moeify
from moeify.cli import _progress
from moeify.cli._progress import Lines
from moeify.cli._text import duration, number
from moeify.progress import stage
from tests.cli.terminal import run_in_terminal, screen, words

DEMO = Path(moeify.__file__).parent / "demo"
SMALL = ["--dataset", str(DEMO / "text.jsonl"), "--batch", "2", "--seq-len", "32", "--max-samples", "20"]
SMALL += ["--fit-tokens", "512", "--eval-tokens", "256", "--save-steps", "2"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress") / "moe"
    moeify.upcycle(DEMO / "gpt2", folder, num_experts=2, noise=0.1)
    return folder


def warmup(mixture: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "moeify", "warmup", str(mixture), str(mixture.parent / "warm"), *SMALL, *more]


def test_a_warm_up_shows_each_stage_and_leaves_a_clean_screen(mixture: Path) -> None:
    code, sent = run_in_terminal(warmup(mixture, "--steps", "6", "--force"), width=80)
    said, left = words(sent), "\n".join(screen(sent, 80))
    assert code == 0
    for name in ("starting", "reading text", "fitting routers", "measuring the loss", "training"):
        assert name in said
    assert re.search(r"\d of 6 steps", said) and re.search(r"\d of 4 layers", said)
    assert all(figure in said for figure in ("loss ", "balance ", "learning rate ", "tokens/s "))
    assert "warmed up became" in left
    assert not any(sign in left for sign in ("\u2501", "reading text", "tokens/s"))


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_what_asks_for_silence_gets_it(tmp_path: Path, option: str) -> None:
    command = [sys.executable, "-m", "moeify", "upcycle", str(DEMO / "gpt2"), str(tmp_path / "moe"), option]
    code, sent = run_in_terminal(command, width=2000)
    assert code == 0
    if option == "--quiet":
        assert words(sent) == ""
    else:
        assert json.loads("\n".join(screen(sent, 2000)))["schema"] == "moeify.upcycle/1"


def test_a_log_has_one_line_for_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "_WORTH_A_LINE", 0.0)
    written = StringIO()
    with moeify.watch_progress(Lines(Console(file=written, width=200, soft_wrap=True))):
        with stage("writing", 5_400_000, "bytes") as writing:
            for _ in range(4):
                writing.advance(1_350_000)
        with stage("training", 200, "steps") as training:
            training.reach(200, figures={"loss": 3.41234, "learning rate": 0.00095})
        with pytest.raises(ValueError), stage("fitting routers", 12, "layers"):
            raise ValueError
    assert written.getvalue().splitlines() == [
        "writing: 5.4 MB of 5.4 MB in 0.0 s",
        "training: 200 of 200 steps in 0.0 s, loss 3.412, learning rate 9.5e-04",
    ]
    monkeypatch.setattr(_progress, "_WORTH_A_LINE", 10.0)
    with moeify.watch_progress(Lines(Console(file=written))), stage("short", 1):
        pass
    assert "short" not in written.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.21, "4.2 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_times_are_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_figures_are_for_people() -> None:
    assert [number(x) for x in (3.41234, 0.00095, 12345, 0)] == ["3.412", "9.5e-04", "12.3K", "0.000"]
