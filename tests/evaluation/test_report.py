"""What moeify makes of the harness's results, and what it refuses before the harness is asked."""

from pathlib import Path
from typing import Any

import pytest

import moeify
from moeify.errors import ConfigError, MissingExtraError, MoeifyError, OutputError
from moeify.evaluation import evaluate as evaluating
from moeify.evaluation import harness
from moeify.evaluation.config import EvaluateConfig
from moeify.evaluation.report import EvaluateReport, Score, side_by_side
from tests.tiny import save_tiny

DEMO = Path(moeify.__file__).parent / "demo" / "gpt2"
RESULTS = {
    "results": {
        "arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.01, "sample_len": 40},
        "gsm": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"},
    },
    "n-shot": {"arc": 0, "gsm": 5},
    "n-samples": {"arc": {"original": 100, "effective": 40}},
}


def test_results_are_laid_side_by_side() -> None:
    other = {**RESULTS, "results": {**RESULTS["results"], "arc": {"acc,none": 0.75, "acc_stderr,none": float("nan")}}}
    arc, gsm = side_by_side([RESULTS, other])
    assert (arc.task, arc.metric, arc.fewshot, arc.questions) == ("arc", "acc", 0, 40)
    assert arc.scores == (Score(value=0.25, stderr=0.01), Score(value=0.75, stderr=None))
    assert [str(score) for score in arc.scores] == ["0.2500 +- 0.0100", "0.7500"]
    assert (gsm.metric, gsm.fewshot, gsm.questions) == ("exact_match, strict-match", 5, None)
    assert gsm.scores[0].stderr is None


def test_a_card_has_the_figures_once(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# A model\n")
    metrics = side_by_side([RESULTS])
    for name in ("first", "sec|ond"):
        report = EvaluateReport(checkpoints=(name,), metrics=metrics, harness="0.4.13", limit=None, seconds=1.0)
        evaluating._write_into_card(card, report)
    text = card.read_text()
    assert text.startswith("# A model\n")
    assert text.count("## Evaluation") == 1
    assert "| task | metric | sec&#124;ond |" in text
    assert "| arc | acc | 0.2500 +- 0.0100 |" in text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_without_the_harness_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="needs the package 'lm_eval'") as caught:
        moeify.evaluate([DEMO], tasks=("arc_easy",))
    assert caught.value.hint == "pip install 'moeify[eval]'"


@pytest.mark.parametrize(
    ("checkpoints", "options", "message"),
    [
        ([], {}, "no checkpoint is named"),
        (["bert"], {}, "is an encoder, and lm-evaluation-harness asks models to write"),
        (["nowhere/at all"], {}, "is not a checkpoint folder"),
        ([str(DEMO)], {"output": "there.json"}, "exists"),
        ([str(DEMO)], {"output": "no/such.json"}, "no/such.json cannot be written"),
        ([str(DEMO)], {"output": "bert", "force": True}, "bert cannot be written"),
        ([str(DEMO)], {"device": "tpu"}, "device 'tpu' is not here"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_tasks_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: list[str], options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(evaluating, "check_harness", lambda: None)
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "bert", "bert")
    (tmp_path / "there.json").write_text("{}")
    if "output" in options:
        options = {**options, "output": Path(options["output"])}
    with pytest.raises(MoeifyError, match=message) as caught:
        moeify.evaluate(checkpoints, tasks=("arc_easy",), **options)
    assert caught.value.hint and isinstance(caught.value, MoeifyError | OutputError)
    assert (tmp_path / "there.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "no task is named"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"num_fewshot": -1}, "num-fewshot must be 0 or more"),
        ({"include": Path("/no/such")}, "is no folder"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown"),
    ],
)
def test_impossible_options_are_one_sentence_and_a_hint(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        EvaluateConfig(**{"tasks": ("arc_easy",), **options})
    assert caught.value.hint
