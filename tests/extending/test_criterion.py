"""A criterion from outside the package is one file: chosen by, shown in the help, cited."""

import json
import re
from pathlib import Path

import pytest

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import ConfigError
from moeify.extend import Criterion, register_criterion
from moeify.pruning.opening import open_prunable
from moeify.pruning.scoring import expert_scores
from tests.extending.documented import example, installed, run

TEXT = Path(moeify.__file__).parent / "demo" / "text.jsonl"
SHORT = ("--dataset", TEXT, "--max-tokens", 1500, "--seq-len", 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return installed(tmp_path_factory.mktemp("site"), example("A pruning criterion"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    from tests.real.checkpoints import demo_gpt2

    folder = tmp_path_factory.mktemp("work")
    moeify.upcycle(demo_gpt2(), folder / "moe", num_experts=4, top_k=2, noise=0.3)
    return folder


def test_prune_extract_help_and_card(place, work):
    done = run(
        place, "prune", "moe", "half", "--keep", 2, "--by", "mean-gate", *SHORT, "--json", "--no-protect", cwd=work
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    sums = json.loads((work / "half" / "scores.json").read_text())["layers"]
    for layer, kept in report["kept"].items():
        pairs = zip(sums[layer]["gate"], sums[layer]["frequency"], strict=True)
        means = [gate / max(count, 1) for gate, count in pairs]
        assert report["scores"][layer] == pytest.approx(means, rel=1e-12)
        assert set(kept) == set(sorted(range(4), key=lambda e: -means[e])[:2])
    card = (work / "half" / "README.md").read_text()
    assert "chose the experts, mean-gate: Doe et al., *A Mean of Weights*" in card
    assert "arXiv:2601.00001" in card
    best = run(
        place,
        "extract",
        "moe",
        "best",
        "--by",
        "mean-gate",
        "--scores",
        "half/scores.json",
        "--json",
        "--no-protect",
        cwd=work,
    )
    assert best.returncode == 0, best.stderr
    assert json.loads(best.stdout)["by"] == "mean-gate"
    # A later step's card cites it too, with the package gone.
    moeify.attach(work / "half", work / "again", router="calibrated")
    assert "arXiv:2601.00001" in (work / "again" / "README.md").read_text()
    for command in ("prune", "extract"):
        said = run(place, command, "--help", cwd=work).stdout
        assert re.search(r"random\|mean-gate", re.sub(r"[\s│]+", "", said))
        assert "mean-gate (mean of its weights)" in " ".join(re.sub("[│]", "", said).split())


def test_text_is_asked_for_and_other_names_are_refused(place, work):
    without = run(place, "prune", "moe", "x", "--keep", 2, "--by", "mean-gate", cwd=work)
    assert without.returncode == 1 and "mean-gate needs text to score" in without.stderr
    plain = run(work, "prune", "moe", "x", "--keep", 2, "--by", "mean-gate", cwd=work)
    assert plain.returncode == 1 and "by 'mean-gate' is unknown" in plain.stderr
    assert not (work / "x").exists()


def test_a_file_without_a_sum_says_which(work):
    path = work / "half" / "scores.json"
    document = json.loads(path.read_text())
    for values in document["layers"].values():
        del values["ean"], values["absolute"]
    path.write_text(json.dumps(document))
    for by in ("reap", "aimer"):  # the one needs other sums, the other reads the weights again
        moeify.prune(work / "moe", work / "b", keep=2, by=by, scores=path, force=True)
    with pytest.raises(moeify.MoeifyError, match="hold no sum 'ean' for layer 0, which ean needs"):
        moeify.prune(work / "moe", work / "c", keep=2, by="ean", scores=path)
    assert not (work / "c").exists()


def test_a_package_that_fails_is_named_and_left_out(tmp_path, work):
    broken = installed(tmp_path / "site", "import nothing_like_this", name="broken")
    done = run(broken, "inspect", "moe", "--json", cwd=work)
    assert done.returncode == 0 and json.loads(done.stdout)["num_experts"] == 4
    assert "'mine' of broken could not be loaded: ModuleNotFoundError" in done.stderr
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "reap"}, "there is a criterion 'reap' already"),
        ({"name": "Very Good"}, "no name that an option can take"),
        ({"name": "novel", "needs": ("novelty",)}, "needs novelty, which no pass collects"),
    ],
)
def test_rows_that_cannot_be(options, said):
    row = {"needs": ("gate",), "formula": lambda sums: sums["gate"], **options}
    with pytest.raises(ConfigError, match=said):
        register_criterion(Criterion(**row))


def test_a_formula_without_scores_is_refused(work):
    mixture = open_prunable(Checkpoint.open(work / "moe"))
    for formula in (lambda sums: sums["weights"][:2], lambda sums: sums["weights"] * float("nan")):
        row = Criterion(name="mine", needs=("weights",), formula=formula)
        with pytest.raises(ConfigError, match=r"criterion mine gives .* not 4 finite"):
            expert_scores(row, mixture, None, seed=0)
