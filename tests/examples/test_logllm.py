"""examples/logllm: its readers, its scores, and the whole program on small models, also where it is killed."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from examples.logllm import evaluation, generate, logs, run
from examples.logllm.model import AFTER, ANSWERS, BEFORE, Collator, LogLLM, whitened
from tests.real.checkpoints import demo_gpt2
from tests.real.hub_shapes import bert_base_uncased_like

REPOSITORY = Path(__file__).resolve().parents[2]
BGL = "{} 1117838570 2005.06.03 R02 2005-06-03-15.42.50.675872 R02 RAS KERNEL INFO {}\n"
THUNDERBIRD = "{} 1131566461 2005.11.09 dn228 Nov 9 12:01:01 dn228/dn228 {}\n"
HDFS = "081109 203615 148 INFO dfs.DataNode$PacketResponder: {}\n"


def test_published_formats_become_windows(tmp_path):
    for name, form in (("BGL.log", BGL), ("Thunderbird.log", THUNDERBIRD)):
        rows = [
            form.format("-", "read 512 of /var/x at 10.0.0.1:80"),
            form.format("-", "ok"),
            form.format("KERN", "bad 0xff"),
        ]
        (tmp_path / name).write_text("".join(rows))
        windows = logs.read(tmp_path / name, 2)
        assert windows == [
            logs.Window(("read <*> of <*> at <*>", "ok"), 0, name[:-4]),
            logs.Window(("bad <*>",), 1, name[:-4]),
        ]
    folder = tmp_path / "hdfs"
    folder.mkdir()
    (folder / "HDFS.log").write_text(
        HDFS.format("Receiving block blk_-16 src 1") + HDFS.format("ask blk_7") + HDFS.format("done blk_-16")
    )
    (folder / "anomaly_label.csv").write_text("BlockId,Label\nblk_-16,Anomaly\nblk_7,Normal\n")
    assert logs.read(folder) == [
        logs.Window(("Receiving block <*> src <*>", "done <*>"), 1, "HDFS"),
        logs.Window(("ask <*>",), 0, "HDFS"),
    ]
    with pytest.raises(SystemExit, match="no CSV"):
        logs.read(Path(__file__))
    (tmp_path / "some.csv").write_text("text\nhello\n")
    with pytest.raises(SystemExit, match="message and label"):
        logs.read(tmp_path / "some.csv")


def test_training_is_what_came_first_and_the_rare_class_is_repeated():
    windows = [logs.Window((str(n),), int(n % 10 == 0), "a") for n in range(100)]
    training, testing = logs.split(windows)
    assert (training, testing) == (windows[:80], windows[80:])
    more = logs.oversampled(training, 0.4)
    assert sum(window.label for window in more) / len(more) == pytest.approx(0.4, abs=0.01)
    assert set(more) == set(training)


def test_counting_words_does_not_find_the_synthetic_anomalies(tmp_path):
    first, again = (generate.write(tmp_path / name, seed=1).read_bytes() for name in ("a.csv", "b.csv"))
    assert first == again
    training, testing = logs.split(logs.read(tmp_path / "a.csv"))
    texts = [["\n".join(window.lines) for window in part] for part in (training, testing)]
    labels = [[window.label for window in part] for part in (training, testing)]
    counts = CountVectorizer(token_pattern=r"\w+")
    judge = LogisticRegression(class_weight="balanced", max_iter=3000)
    judge.fit(counts.fit_transform(texts[0]), labels[0])
    assert roc_auc_score(labels[1], judge.decision_function(counts.transform(texts[1]))) < 0.7
    normal = {word for text, label in zip(texts[0], labels[0], strict=True) if not label for word in text.split()}
    assert {word for text in texts[1] for word in text.split()} <= normal


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return bert_base_uncased_like(tmp_path_factory.mktemp("logllm") / "bert")


def test_scores_are_likelihoods_whatever_else_is_in_the_batch(encoder):
    """Of soft tokens that are word embeddings: the language model's own likelihood of prompt and answer."""
    tokenizer, judge = AutoTokenizer.from_pretrained(demo_gpt2()), AutoModelForCausalLM.from_pretrained(demo_gpt2())
    reader = AutoModel.from_pretrained(encoder)
    width = judge.get_input_embeddings().embedding_dim
    model = LogLLM(reader, torch.nn.Linear(reader.config.hidden_size, width), judge, tokenizer).eval()
    word = torch.tensor(tokenizer(" the", add_special_tokens=False)["input_ids"][:1])
    with torch.no_grad():
        model.projector.weight.zero_()
        model.projector.bias.copy_(judge.get_input_embeddings()(word)[0])
    windows = [logs.Window(("man", "city"), 1, "a"), logs.Window(("man", "the city", "woman", "man"), 0, "a")]
    collate = Collator(AutoTokenizer.from_pretrained(encoder))
    batch = collate(windows)
    assert batch["input_ids"].shape[0] == 4 and batch["places"].tolist() == [[0, 1, -1, -1], [0, 2, 3, 0]]
    with torch.no_grad():
        found = model(**batch)
        model.train()
        loss = model(**batch)["loss"]
    for row, window in enumerate(windows):
        for column, answer in enumerate(ANSWERS):
            before, after, end = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (BEFORE, AFTER, answer))
            ids = torch.tensor([[*before, *word.tolist() * len(window.lines), *after, *end]])
            with torch.no_grad():
                logits = judge(ids).logits[0, :-1].log_softmax(-1)
            expected = logits[-len(end) :].gather(-1, ids[0, -len(end) :, None]).sum()
            torch.testing.assert_close(found["scores"][row, column], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, found["loss"])


def test_whitened_vectors_are_of_unit_length_and_spread_alike():
    torch.manual_seed(0)
    vectors = 3 + torch.randn(40, 6) * torch.tensor([1.0, 1.0, 0.3, 0.3, 0.3, 0.0])
    found = whitened(vectors)(vectors).detach()
    torch.testing.assert_close(found.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert found.norm(dim=1).mean() == pytest.approx(1, abs=1e-4)
    spread = found.T.cov().diagonal()
    assert spread[:5].min() > 0.9 * spread[:5].max() and spread[5] < 1e-6


def test_logs_of_a_single_line_are_refused(encoder, tmp_path):
    rows = [f"{session},ok,{session % 2}" for session in range(20)]
    (tmp_path / "one.csv").write_text("\n".join(["session,message,label", *rows]))
    with pytest.raises(SystemExit, match="one line again and again"):
        run.main([*options(encoder, tmp_path / "out"), "--logs", str(tmp_path / "one.csv")])


def test_intervals_and_figures():
    windows = [logs.Window((), int(n < 20), "ab"[n % 2]) for n in range(100)]
    found = evaluation.np.array([int(n < 10 or 20 <= n < 25) for n in range(100)])
    table = evaluation.report(windows, found)
    assert table["all"]["precision"] == pytest.approx(10 / 15) and table["all"]["recall"] == 0.5
    assert table["all"]["f1"] == pytest.approx(20 / 35)
    assert table["all"]["f1_low"] < 20 / 35 < table["all"]["f1_high"]
    assert table["a"]["windows"] == table["b"]["windows"] == 50


STAGES = ("language-model", "projector", "routers", "encoder", "all")


def options(encoder, folder, *, steps=2, **more):
    mixture = ["encoder", "projector", "language-model"]
    counts = [f"{stage}={steps}" for stage in STAGES]
    words = {"--encoder": [str(encoder)], "--sessions": ["60"], "--batch": ["8"], "--log-every": ["1"], **more}
    named = [part for name, values in words.items() for part in (name, *values)]
    return [str(folder), "--mixture", *mixture, "--steps", *counts, "--save-every", "2", *named]


def test_five_stages_train_what_they_should_and_the_windows_are_judged(encoder, tmp_path, capsys):
    result = run.main(options(encoder, tmp_path))
    assert {name: len(losses) for name, losses in result["losses"].items()} == dict.fromkeys(STAGES, 2)
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("==")] == [f"== {s}" for s in STAGES]
    states = [load_file(tmp_path / f"stage-{n}-{stage}" / "trained.safetensors") for n, stage in enumerate(STAGES)]
    moved = [
        {name for name in after if not after[name].equal(before[name])} for before, after in itertools.pairwise(states)
    ]
    assert {name.split(".")[0] for name in moved[0]} == {"projector"}
    assert moved[1] and all("router" in name for name in moved[1])
    assert {name.split(".")[0] for name in moved[2]} == {"projector", "encoder"}
    assert {name.split(".")[0] for name in moved[3]} == {"projector", "encoder", "language_model"}
    assert not [name for name in states[0] if "base_layer" in name]  # frozen weights are not saved
    assert json.loads((tmp_path / "result.json").read_text())["table"]["all"]["windows"] == 12
    assert (tmp_path / "experts.png").read_bytes().startswith(b"\x89PNG")
    again = run.main(options(encoder, tmp_path))
    assert again["table"] == result["table"]  # every stage was there


@pytest.mark.slow
def test_killed_and_gone_on_with_gives_the_same(encoder, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run.main(options(encoder, whole, steps=4))
    command = [sys.executable, "-m", "examples.logllm.run", *options(encoder, broken, steps=4)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (broken / "stage-3-encoder" / "checkpoint-2").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (broken / "result.json").exists()
    run.main(options(encoder, broken, steps=4))
    for number, stage in enumerate(STAGES):
        name = f"stage-{number}-{stage}/trained.safetensors"
        found, expected = load_file(broken / name), load_file(whole / name)
        assert found.keys() == expected.keys()
        assert not [key for key, value in expected.items() if not found[key].equal(value)]


@pytest.mark.slow
def test_two_processes_train_and_one_judges(encoder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "examples.logllm.run", *options(encoder, tmp_path, **{"--monitor-every": ["1"]})]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training took") == 1 and done.stdout.count("== all") == 1
    assert done.stdout.count("routing/projector/entropy") == 2 * len(STAGES)  # one of both processes together
    assert (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_four_bits_and_routers_by_system(encoder, tmp_path):
    result = run.main(options(encoder, tmp_path, steps=2, **{"--four-bit": [], "--by-system": []}))
    assert all(loss == loss for losses in result["losses"].values() for loss in (entry["loss"] for entry in losses))
    names = load_file(tmp_path / "stage-4-all" / "trained.safetensors").keys()
    assert any("encoder" in name and "lora_A" in name for name in names)
    assert not [name for name in names if "experts" in name and "lora" not in name and "encoder" in name]
