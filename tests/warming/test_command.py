"""``moeify warmup`` as a user meets it: what it prints, and what it says of bad input."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from moeify.cli.app import app
from moeify.upcycling.upcycle import upcycle
from tests.real.checkpoints import smollm2
from tests.warming.mixtures import DEMO, corpus, demo_mixture

QUICK = ("--device", "cpu", "--seq-len", "32", "--fit-tokens", "1024", "--eval-tokens", "512")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe", noise=0.3)


def command(*arguments):
    return CliRunner().invoke(app, ["warmup", *map(str, (*arguments, *QUICK))])


def test_the_table_says_what_was_measured(mixture, data, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = command(
        mixture,
        tmp_path / "warm",
        "--dataset",
        data,
        "--steps",
        2,
        "--plot",
        tmp_path / "load.png",
        "--reference",
        DEMO / "gpt2",
    )
    assert done.exit_code == 0, done.stderr
    rows = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in done.stdout.splitlines()[1:])
    assert {"MaxVio", "entropy", "dead experts", "layer 0", "layer 2"} <= set(rows)
    assert "over 1024 tokens, 524.3 kB kept" in rows["fit"]
    assert all(word in rows["headroom"] for word in ("of their mean;", "as routed", "at random", "by expert"))
    assert "->" in rows["causal loss"]
    assert all("+-" in rows[row] for row in ("causal loss", "its change", "random routing", "dense"))
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_got_worse_is_said_and_one_within_its_error_is_not(mixture, data, tmp_path):
    good = ("--dataset", data, "--steps", 8, "--learning-rate", 0.05)
    assert command(mixture, tmp_path / "good", *good, "-q").exit_code == 0

    def trained(name, *options):
        done = command(tmp_path / "good", tmp_path / name, "--dataset", data, "--steps", 2, "--json", *options)
        report = json.loads(done.stdout)
        change = report["eval_loss_after"] - report["eval_loss_before"]
        said = any("held-out loss got worse by" in note for note in report["notes"])
        assert said == ("warning: held-out loss got worse by" in done.stderr)
        return change, report["eval_loss_errors"]["change"], said

    change, error, said = trained("near", "--learning-rate", 50, "--balance", "none")
    assert 0 < change < 2 * error and not said
    change, error, said = trained("far", "--learning-rate", 0.05, "--train", "moe")
    assert change > 2 * error and said


def test_domains_are_said_by_layer(mixture, tmp_path):
    lines = [json.loads(line) for line in (corpus(tmp_path)).read_text().splitlines()]
    rows = [{"text": r["text"], "domain": r["domain"] + str(n % 2)} for n, r in enumerate(lines)]
    path = tmp_path / "four.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command(mixture, tmp_path / "warm", "--dataset", path, "--domain-column", "domain", "--steps", 0)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("own first") == 2
    assert "NMI" in done.stdout


def named(domains):
    """A text of each domain, as lines."""
    return "".join(f"{json.dumps({'text': 'word ' * 300, 'd': name})}\n" for name in domains)


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (None, ("--text-column", "body"), "has no column 'body'"),
        (None, ("--domain-column", "kind"), "has no column 'kind'"),
        (None, ("--seq-len", 999), "a block of 999 tokens is longer than the model's 128"),
        (None, ("--loss", "masked"), "has no head for the masked loss"),
        (None, ("--resume", "--steps", 2), "there is no interrupted run to resume"),
        (None, ("--device", "tpu"), "device 'tpu' is not here"),
        (None, ("--device", "tpu", "--steps", 0), "device 'tpu' is not here"),
        (None, ("--device", "tpu", "--low-memory", "--steps", 0), "run on the CPU, not on 'tpu'"),
        (None, ("--fit", "domains"), "fitting to domains needs to know them"),
        ("", (), "is empty"),
        ("\x00{", (), "cannot read"),
        ('{"text": "   "}\n', (), "holds no text"),
        ('{"text": "short"}\n', (), "fewer than one block of 32"),
        (named("a"), ("--domain-column", "d"), "has one value, 'a'"),
        (named("abcde"), ("--domain-column", "d"), "names 5 domains for 4 experts"),
    ],
)
def test_bad_input_is_one_sentence_and_a_hint(mixture, data, tmp_path, text, arguments, said):
    path = data
    if text is not None:
        path = tmp_path / "text.jsonl"
        path.write_text(text)
    refused(said, mixture, tmp_path / "warm", "--dataset", path, arguments=arguments)
    assert {p.name for p in tmp_path.iterdir()} <= {"text.jsonl"}


def test_checkpoints_that_cannot_be_warmed_up_and_outputs_in_the_way(mixture, data, tmp_path):
    dense = refused("gpt2", DEMO / "gpt2", tmp_path / "warm", "--dataset", data)
    assert "moeify upcycle" in dense
    shutil.copytree(mixture, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    refused("has no tokenizer", tmp_path / "bare", tmp_path / "warm", "--dataset", data)
    refused("exists already", mixture, tmp_path / "bare", "--dataset", data)


def refused(said, *words, arguments=()):
    """The hint of a command that must fail with a sentence that has ``said`` in it."""
    done = CliRunner().invoke(app, ["warmup", *map(str, (*words, *QUICK, *arguments))])
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    sentence, hint = done.stderr.strip().splitlines()
    assert sentence.startswith("error: ")
    assert said in sentence
    assert hint.startswith("hint: ")
    return hint


@pytest.mark.slow
@pytest.mark.real
def test_eight_experts_of_smollm2_take_less_than_five_megabytes_of_new_data(data, tmp_path):
    """All 30 layers would take 0.5 MB more: 26 x 8 x 576 x 4 bytes."""
    upcycle(smollm2(num_layers=4), tmp_path / "moe", num_experts=8, noise=0.0)
    done = command(tmp_path / "moe", tmp_path / "warm", "--dataset", data, "--steps", 0, "--json")
    report = json.loads(done.stdout)
    new = sum(p.stat().st_size for p in (tmp_path / "warm").iterdir() if p.stat().st_nlink == 1)
    assert report["bytes_written"] < 100_000
    assert new < 4_500_000
    assert sum(p.stat().st_size for p in (tmp_path / "warm").iterdir()) > 400_000_000
