"""What is seen of long work: bars on a terminal, lines in a log, nothing where nobody asked."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import moeify
from moeify.checkpoint.interruption import Kept, keeping
from moeify.cli import _progress
from moeify.cli._errors import guarded
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


@pytest.mark.slow
def test_a_warm_up_shows_its_stages_says_how_to_go_on_and_leaves_a_clean_screen(mixture: Path) -> None:
    """Ctrl-C in mid-training, before the first checkpoint and behind it, then the command that it names."""
    moeify_command = [sys.executable, "-m", "moeify"]
    moeify.attach(mixture, mixture.parent / "warm")
    arguments = ["warmup", str(mixture), str(mixture.parent / "warm"), *SMALL, "--steps", "30", "--force"]
    early = [*arguments, "--save-steps", "60"]
    code, sent = run_in_terminal([*moeify_command, *early], 2000, interrupt_at=r"([4-9]|1\d) of 30 steps")
    assert code == 130
    hint = f"hint: moeify {' '.join([*early, '--save-steps=3'])}"
    said = ["error: interrupted; nothing was written: the run's first checkpoint comes after 30 steps", hint]
    assert [line for line in screen(sent, 2000) if line.strip()][-2:] == said
    assert not (mixture.parent / "warm.warmup").exists()
    code, sent = run_in_terminal([*moeify_command, *arguments], 80, interrupt_at=r"([4-9]|1\d) of 30 steps")
    assert code == 130
    said = words(sent)
    for name in ("starting", "reading text", "fitting routers", "measuring the loss", "training"):
        assert name in said
    assert all(figure in said for figure in ("loss ", "balance ", "learning rate ", "tokens/s ", " left"))
    left = "".join(line.ljust(80) for line in screen(sent, 80))  # a line may end anywhere, with the path's length
    found = re.search(r"error: interrupted; (.*?) holds the run up to step \d+\s+hint: moeify (.*)", left)
    assert found and found[1] == f"{mixture.parent / 'warm'}.warmup"
    assert found[2].split() == [*arguments, "--resume"]
    code, sent = run_in_terminal([*moeify_command, *found[2].split()], 80)
    assert code == 0
    left = "\n".join(screen(sent, 80))
    assert "warmed up became" in left
    assert not any(sign in left for sign in ("\u2501", "reading text", "tokens/s"))


@pytest.mark.parametrize("option", ["--noise", "--quiet", "--json"])
def test_bars_go_and_what_asks_for_silence_gets_it(tmp_path: Path, option: str) -> None:
    arguments = ["upcycle", str(DEMO / "gpt2"), str(tmp_path / "moe"), option]
    command = [sys.executable, "-m", "moeify", *arguments, *(["0.01"] if option == "--noise" else [])]
    code, sent = run_in_terminal(command, width=2000)
    left = "\n".join(screen(sent, 2000))
    assert code == 0
    if option == "--quiet":
        assert words(sent) == ""
    elif option == "--json":
        assert json.loads(left)["schema"] == "moeify.upcycle/1"
    else:
        assert "\u2501" in sent and "\u2501" not in left
        assert left.strip().startswith("gpt2 became")


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "error: interrupted; nothing was written\n"),
        (Kept(what="out is complete"), "error: interrupted; out is complete\n"),
        (
            Kept(what="it is at step 5", option="--resume"),
            "error: interrupted; it is at step 5\nhint: moeify warmup 'a b' --steps 9 --force --resume\n",
        ),
        (Kept(what="x", command="moeify push x me/x"), "error: interrupted; x\nhint: moeify push x me/x\n"),
    ],
)
def test_an_interruption_says_what_stays_and_what_goes_on(
    kept: Kept | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        with keeping(lambda: kept):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    monkeypatch.setattr(sys, "argv", ["moeify", "warmup", "a b", "--steps", "9", "--force"])
    with pytest.raises(SystemExit) as ended:
        guarded(command)()
    assert ended.value.code == 143
    assert capsys.readouterr().err == said


def test_a_log_has_one_line_for_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "_WORTH_A_LINE", 0.0)
    written = StringIO()
    with moeify.watch_progress(Lines(Console(file=written, width=200, soft_wrap=True))):
        with stage("writing", 5_400_000, "bytes") as writing:
            for _ in range(4):
                writing.advance(1_350_000)
        with stage("training", 200, "steps") as training:
            training.reach(200, figures={"loss": 3.41234, "learning rate": 0.00095})
        with stage("reading text", 131_072, "tokens") as reading:
            reading.advance(67_406)  # where the text ends
        with pytest.raises(ValueError), stage("fitting routers", 12, "layers"):
            raise ValueError
    assert written.getvalue().splitlines() == [
        "writing: 5.4 MB of 5.4 MB in 0.0 s",
        "training: 200 of 200 steps in 0.0 s, loss 3.412, learning rate 9.5e-04",
        "reading text: 67,406 tokens in 0.0 s",
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
    assert [number(x) for x in (3.41234, 0.00095, 12345, 0)] == ["3.412", "9.5e-04", "12.3K", "0"]
