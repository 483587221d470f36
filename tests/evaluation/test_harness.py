"""Real tasks of lm-evaluation-harness on local files; make evaluation installs it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import moeify
from moeify.errors import ConfigError
from moeify.routing.loading import load_model, load_tokenizer
from tests.cli.terminal import run_in_terminal, screen

pytestmark = pytest.mark.evaluation

DEMO = Path(moeify.__file__).parent / "demo"
QUESTIONS = [
    {"question": f"{number} of the people", "choices": [" of the people", " xqzvw", " kjq"], "label": number % 3}
    for number in range(24)
]
CHOOSE = """
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {max_gen_toks: 3, until: ["."]}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "choose.yaml").write_text(CHOOSE)
    (folder / "write.yaml").write_text(WRITE)
    shutil.copytree(DEMO / "gpt2", folder / "dense")
    moeify.upcycle(folder / "dense", folder / "same", num_experts=2, noise=0)
    moeify.upcycle(folder / "dense", folder / "other", num_experts=2, noise=1.0)
    return folder


@torch.no_grad()
def accuracy(folder: Path) -> float:
    """The share of questions whose right answer is the likeliest continuation, by hand."""
    model, tokenizer, right = load_model(folder), load_tokenizer(folder), 0
    for row in QUESTIONS:
        scores = []
        for choice in row["choices"]:
            before = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(row["question"] + choice, add_special_tokens=False)["input_ids"]
            logits = model(input_ids=torch.tensor([whole])).logits.log_softmax(-1)[0]
            scores.append(sum(float(logits[n - 1, whole[n]]) for n in range(len(before), len(whole))))
        right += scores.index(max(scores)) == row["label"]
    return right / len(QUESTIONS)


def test_scores_are_those_of_the_models(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    stages: dict[str, tuple[int, int | None]] = {}
    with moeify.watch_progress(lambda stage: stages.update({stage.name: (stage.done, stage.total)})):
        report = moeify.evaluate(
            ["dense", "same", "other"], tasks=("choose.yaml", "write.yaml"), output=Path("scores.json"), card=True
        )
    chosen, written = report.metrics
    assert [score.value for score in chosen.scores] == [accuracy(place / n) for n in ("dense", "same", "other")]
    assert chosen.scores[0] == chosen.scores[1]
    value = chosen.scores[0].value
    assert chosen.scores[0].stderr == pytest.approx((value * (1 - value) / (len(QUESTIONS) - 1)) ** 0.5)
    assert (written.task, written.metric, written.questions) == ("write", "exact_match", len(QUESTIONS))
    assert json.loads(Path("scores.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    assert f"| choose | acc | {' | '.join(map(str, chosen.scores))} |" in Path("same", "README.md").read_text()
    assert stages["evaluating other"] == (len(QUESTIONS), len(QUESTIONS))


def test_the_terminal_shows_the_table_and_nothing_of_the_harness(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    command = [sys.executable, "-m", "moeify", "evaluate", "dense", "--tasks", "choose.yaml", "--limit", "3"]
    code, sent = run_in_terminal(command, 80)
    left = [line for line in screen(sent, 80) if line]
    assert code == 0
    assert left[0] == "scores, with standard errors"
    assert len(left) == 4 and left[3].startswith("lm-evaluation-harness ")


@pytest.mark.parametrize(
    ("task", "message", "hint"),
    [
        ("hellaswg", "has no task 'hellaswg'", "did you mean hellaswag"),
        ("no.yaml", "is no file", "name a task's YAML file"),
        ("odd.yaml", "is no task: it has no key task", "write it as"),
        ("code.yaml", "is no task: code.yaml is no valid YAML", "--include"),
    ],
)
def test_unknown_tasks_are_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, task: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(place)
    Path("odd.yaml").write_text("dataset_path: json\n")
    Path("code.yaml").write_text("task: x\ndoc_to_text: !function code.text\n")
    with pytest.raises(ConfigError) as caught:
        moeify.evaluate(["dense"], tasks=(task,))
    assert message in caught.value.message and hint in str(caught.value.hint)
