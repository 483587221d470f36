"""Text from files does no harm where it is shown: terminal, JSON, pictures, page, model card."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from moeify.cli._output import Output, error, plain
from tests.faults.in_process import Done, moeify
from tests.faults.words import write_tokenizer
from tests.tiny import save_tiny, state

SCRIPT = "<script>alert(1)</script>"
NASTY = [
    SCRIPT,
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "[bold red]x[/]",
    "[/]",
    "x\\",
    "a\nerror: all is lost",
    "a\rb",
    "\u202egnp.exe",
    "\u200b\ufeff",
    "`| x | y |`",
    "'><img src=x>",
    "$\\frac{$",
    "]]>",
    "{{7*7}}",
    "${x}",
    ":warning:",
    "\u2028",
    "---\nlicense: mit\n---",
    "x" * 900,
]


def safe(done: Done) -> None:
    """Nothing that steers a terminal, and no line that a file made up."""
    assert done.code in (0, 1, 3) and "bug in moeify" not in done.err, done.text
    assert all(c.isprintable() or c == "\n" for c in done.text)
    assert not re.search(r"^(error: all is lost|\s*license: mit)", done.text, re.MULTILINE)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    write_tokenizer(save_tiny(folder / "dense", "gpt2"), "gpt2")
    assert moeify("upcycle", folder / "dense", folder / "moe", "--experts", 4).code == 0
    rows = [{"text": "the cat sat on 1 2 3 " * 8, "kind": kind} for kind in NASTY for _ in range(3)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_tensors_with_nasty_names(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(work / "dense", folder)
    tensors = load_file(folder / "model.safetensors")
    one = tensors["transformer.ln_f.bias"]
    save_file(tensors | {name: one.clone() for name in NASTY}, folder / "model.safetensors")
    safe(moeify("inspect", folder))
    done = moeify("inspect", folder, "--json")
    safe(done)
    said = " ".join(problem["message"] for problem in json.loads(done.out)["problems"])
    assert SCRIPT in said
    safe(moeify("upcycle", folder, tmp_path / "moe", "--experts", 4))
    assert set(NASTY) <= state(tmp_path / "moe").keys()


@pytest.mark.parametrize("key", ["model_type", "architectures", "hidden_size", "n_layer"])
def test_configs_with_nasty_values(work: Path, tmp_path: Path, key: str) -> None:
    for number, nasty in enumerate(NASTY):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        shutil.copy(work / "dense" / "model.safetensors", folder)
        config = json.loads((work / "dense" / "config.json").read_text())
        value = [nasty] if key == "architectures" else nasty
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        safe(moeify("inspect", folder))
        safe(moeify("upcycle", folder, tmp_path / "out"))


def test_a_record_breaks_out_of_no_card(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    shutil.copytree(work / "moe", folder)
    nasty = "\n".join(NASTY)
    options = {nasty: nasty, "list": NASTY, "inner": {nasty: nasty}}
    step = {"command": nasty, "options": options, "results": options, "versions": {nasty: nasty}}
    (folder / "moeify.json").write_text(json.dumps({"source": nasty, "revision": nasty, "steps": [step]}))
    license_text = "mit\n---\n# forged"
    (folder / "README.md").write_text(
        f"---\nlicense: {json.dumps(license_text)}\nlanguage: [en, {json.dumps(SCRIPT)}]\n"
        "datasets: &a [x]\ntags: [*a, *a]\n---\n"
    )
    safe(moeify("inspect", folder))
    safe(moeify("attach", folder, tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("\n---\n") == 1 and "<script" not in card.split("\n---\n")[1]
    front = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert front.get("license") is None and front["library_name"] == "transformers"
    forged = re.compile(r"^error: all is lost|^license: mit|<img|<script", re.MULTILINE)
    assert not forged.search(card.split("\n---\n")[1])


def test_pages_and_pictures(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / SCRIPT.replace("/", "")
    shutil.copytree(work / "moe", folder)
    page, plot = tmp_path / "page.html", tmp_path / "plot.svg"
    done = moeify(
        "inspect",
        folder,
        "--dataset",
        work / "text.jsonl",
        "--domain-column",
        "kind",
        "--seq-len",
        16,
        "--html",
        page,
        "--plot",
        plot,
        "--vocabulary",
        "--tokens",
    )
    safe(done)
    text = page.read_text()
    body = text[text.index("<body>") :]
    assert body.count("<script") == 2 and "<img" not in body and "onerror" not in body
    assert "<script" not in plot.read_text() and "<img" not in plot.read_text()
    assert "\x1b" not in text + plot.read_text()


def test_errors_and_tables_keep_to_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=False, quiet=False)
    for nasty in NASTY:
        error(nasty, nasty)
        out.table(nasty, [(nasty, nasty)])
        out.grid(nasty, [nasty, nasty], [[nasty, nasty]])
        out.lines(nasty, [nasty])
        out.warning(nasty)
        out.hint(nasty)
        out.notice(nasty)
    shown = capsys.readouterr()
    safe(Done(0, shown.out, shown.err))
    assert SCRIPT in shown.out and "[bold red]x[/]" in shown.out and ":warning:" in shown.out


def test_what_is_too_long_is_cut() -> None:
    assert len(plain("x" * 10**6)) < 5000 and "1000000 characters" in plain("x" * 10**6)


def test_json_fits_any_terminal(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Output(as_json=True, quiet=False).document({"name": "ü\x9b\u202e\ud83d\ude00\U000e0041"})
    shown = capsys.readouterr().out
    assert json.loads(shown)["name"].startswith("ü\x9b\u202e")
    assert "ü" in shown and "\x9b" not in shown and "\u202e" not in shown
