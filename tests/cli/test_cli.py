"""The command line as a user meets it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from tests.tiny import save_tiny, tree


def moeify(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moeify", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=120,
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("cli") / "tiny-bert", "bert")


def test_upcycle_verify_attach(bert: Path, tmp_path: Path) -> None:
    done = moeify("upcycle", bert, "--experts", 4, "--noise", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "tiny-bert-moe-e4-k2"
    assert output.is_dir()
    for part in ("bert -> bert_moe", "4 of 4", "4, top-2", "dense", "total", "active", "noise"):
        assert part in done.stdout
    assert f"moeify verify {bert} tiny-bert-moe-e4-k2" in done.stderr
    checked = moeify("verify", bert, output, "--json")
    document = json.loads(checked.stdout)
    assert document["schema"] == "moeify.verify/1"
    assert document["relative_diff"] <= 1e-6
    attached = moeify("attach", output, tmp_path / "fresh", "--top-k", 1, "--json")
    assert json.loads(attached.stdout)["top_k"] == 1
    assert checked.stderr == attached.stderr == ""


def test_json_is_one_document_with_the_promised_keys(bert: Path, tmp_path: Path) -> None:
    done = moeify("upcycle", bert, tmp_path / "out", "--json", "--dry-run")
    document = json.loads(done.stdout)
    assert document["schema"] == "moeify.upcycle/1"
    promised = [
        "source",
        "output",
        "family",
        "model_type",
        "num_experts",
        "top_k",
        "moe_layers",
        "params_dense",
        "params_total",
        "params_active",
        "bytes_written",
        "seconds",
        "noise_requested",
        "noise_effective",
    ]
    assert set(promised) <= set(document)
    assert not (tmp_path / "out").exists()


def test_quiet_is_quiet(bert: Path, tmp_path: Path) -> None:
    done = moeify("upcycle", bert, tmp_path / "out", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_error_is_one_sentence_and_a_hint(bert: Path, tmp_path: Path) -> None:
    done = moeify("upcycle", bert, tmp_path / "out", "--experts", 2, "--top-k", 3)
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert first == "error: top-k must lie between 1 and the number of experts, 2, not 3"
    assert second == "hint: pass --top-k 2"


def test_control_characters_of_a_file_never_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "\\u001b[31mred[bold]"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    done = moeify("upcycle", tmp_path, tmp_path.parent / "never")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "red[bold]" in done.stderr


def test_a_name_that_the_file_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    done = moeify("upcycle", "x" * 5000, tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_usage_errors_exit_with_two(bert: Path) -> None:
    assert moeify("upcycle").returncode == 2
    assert moeify("upcycle", bert, "--experts", "many").returncode == 2
    assert moeify("dance").returncode == 2


def test_a_failure_that_is_a_bug_has_no_traceback_unless_asked(bert: Path, tmp_path: Path) -> None:
    code = "import moeify.upcycling.upcycle as u\ndef broken(*a, **k): raise RuntimeError('boom')\n"
    code += "u.upcycle = broken\nfrom moeify.__main__ import main\nmain()"
    arguments = [sys.executable, "-c", code, "upcycle", str(bert), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "RuntimeError: boom" in done.stderr
    debug = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "MOEIFY_DEBUG": "1"})
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("command", ["", "upcycle", "attach", "verify"])
def test_help_is_light_and_has_examples(command: str) -> None:
    arguments = [command] if command else []
    code = (
        "import sys\nfrom moeify.cli.app import app\n"
        f"sys.argv = ['moeify', *{arguments!r}, '--help']\n"
        "try:\n    app()\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert not command or f"$ moeify {command}" in done.stdout


def test_version() -> None:
    assert moeify("--version").stdout.strip() == "moeify 0.1.0"
    told = json.loads(moeify("--version", "--json").stdout)
    assert (told["schema"], told["moeify"]) == ("moeify.version/1", "0.1.0")
    assert told["torch"] == metadata.version("torch") and told["python"] == platform.python_version()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    wide = save_tiny(tmp_path / "wide", "qwen3", hidden_size=512, intermediate_size=2048)
    before = tree(wide)
    process = subprocess.Popen(
        [sys.executable, "-m", "moeify", "upcycle", str(wide), str(tmp_path / "out"), "--experts", "128"],
        stderr=subprocess.PIPE,
        text=True,
    )
    stage = tmp_path / ".out.moeify-partial"
    deadline = time.monotonic() + 60
    while not list(stage.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]
    assert tree(wide) == before


def test_a_closed_pipe_is_no_drama(bert: Path) -> None:
    pipeline = f"{sys.executable} -m moeify upcycle {bert} x --dry-run --json | head -c 1"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True)
    assert done.stderr == ""


DROPPED = """
import os, signal, sys, time
from moeify.cli import _errors
class Part:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000):
            pass
def command():
    part = Part()
    del part
    for _ in range(1000):
        time.sleep(0.01)
    print("went on")
_errors.guarded(command)()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_in_a_destructor_is_not_lost(number: signal.Signals, code: int) -> None:
    """Python drops exceptions there, and training would have gone on."""
    done = subprocess.run([sys.executable, "-c", DROPPED, str(int(number))], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_during_the_imports_needs_no_traceback() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import moeify.__main__ as m; m.leave_at_once(); print('up', flush=True); m.main()",
            "upcycle",
            "--help",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "error: interrupted before the command began\n"
