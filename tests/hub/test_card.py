"""What the model card says, and that nothing from files can break out of it."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

import moeify
from moeify.checkpoint.source import Source
from moeify.families.registry import FAMILIES
from moeify.provenance.card import card_text, write_card
from moeify.provenance.citations import citations
from moeify.provenance.record import Record, Step
from moeify.pruning.config import CALIBRATED

from ..real.hub_shapes import bert_base_uncased_like, gpt2_like, qwen_like, sentence_encoder_like
from .models import CARD

NASTY = "<img src=x onerror=alert(1)> | a | b |\n\n# Title [x](javascript:alert(1)) `code` *b* --- "


def card(tmp_path, write=None, **options):
    source = (write or (lambda f: qwen_like(f, "qwen3")))(tmp_path / "dense")
    (source / "README.md").write_bytes(CARD)
    report = moeify.upcycle(source, tmp_path / "moe", num_experts=4, **options)
    return report, ModelCard.load(tmp_path / "moe" / "README.md")


@pytest.mark.parametrize(
    ("write", "task", "auto", "remote"),
    [
        (bert_base_uncased_like, "fill-mask", "AutoModelForMaskedLM", True),
        (gpt2_like, "text-generation", "AutoModelForCausalLM", True),
        (sentence_encoder_like, "sentence-similarity", "AutoModel", True),
        (lambda f: qwen_like(f, "qwen2"), "text-generation", "AutoModelForCausalLM", False),
        (
            lambda f: qwen_like(f, "qwen3", head="ForSequenceClassification"),
            "text-classification", "AutoModelForSequenceClassification", False,
        ),
    ],
)  # fmt: skip
def test_metadata_and_snippet(tmp_path, write, task, auto, remote):
    report, page = card(tmp_path, write)
    assert page.data.library_name == "transformers"
    assert page.data.license == "apache-2.0"
    assert page.data.language == ["en", "de"]
    assert page.data.pipeline_tag == task
    assert {"moe", "moeify", report.family} <= set(page.data.tags)
    assert f"import AutoTokenizer, {auto}\n" in page.text
    assert ("trust_remote_code=True" in page.text) == remote
    for count in (report.params_dense, report.params_total, report.params_active):
        assert f"| {count:,} |" in page.text
    assert "computes what its base computes until it is trained" in page.text
    assert "arXiv:2212.05055" in page.text


def test_base_model_only_where_it_is_one_on_the_hub(tmp_path):
    _, page = card(tmp_path)
    assert page.data.base_model is None
    folder = tmp_path / "moe"
    record = Record.read(Source(folder=folder, name="moe"))
    config = json.loads((folder / "config.json").read_text())
    on_hub = replace(record, source="Qwen/Qwen3-0.6B", revision="a" * 40)
    write_card(folder, FAMILIES["qwen3"], config, on_hub)
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-0.6B"
    assert data["base_model_relation"] == "finetune"


def test_steps_of_other_commands_are_shown(tmp_path):
    card(tmp_path)
    folder = tmp_path / "moe"
    record = Record.read(Source(folder=folder, name="moe"))
    warm = Step(
        command="warmup",
        options={"dataset": "book.txt", "steps": 100, "balance": "switch", "fit": "kmeans"},
        results={"eval_loss_before": 3.25, "eval_loss_after": 3.125, "max_violation_after": 0.5},
    )
    prune = Step(
        command="prune",
        options={"by": "reap", "keep": 2, "merge": True},
        results={"num_experts": 2, "kept": {"0": [1, 3], "1": list(range(40))}},
    )
    record.with_step(warm).with_step(prune).write(folder)
    page = card_text(folder)
    rows = (
        "| measured | before | after |", "| eval loss | 3.25 | 3.125 |",
        "| max violation after | 0.5 |", "| kept 0 | 1, 3 |", "| kept 1 | 40 values |",
    )  # fmt: skip
    for row in rows:
        assert row in page
    assert "changes the routers only" in page
    for paper in ("2101.03961", "2604.13508", "2510.13999", "2408.15664", "2310.01334"):
        assert paper in page
    assert "Pruning was not followed by training" in page


@pytest.mark.parametrize("by", CALIBRATED)
@pytest.mark.parametrize("fit", ["kmeans", "domains"])
def test_every_paper_has_authors_title_and_number(by, fit):
    options = {"fit": fit, "steps": 9, "balance": "cv2", "z_coef": 0.1, "by": by, "merge": True}
    steps = [Step(command=c, options=options, results={}) for c in ("upcycle", "warmup", "prune")]
    found = citations(steps)
    assert len(found) == 7
    for citation in found:
        assert citation.authors.endswith((" et al.", "Ersoy"))
        assert len(citation.title) > 20
        assert re.fullmatch(r"\d{4}\.\d{5}", citation.arxiv)


@pytest.mark.parametrize(
    ("model_type", "noise", "later", "warned"),
    [
        ("qwen2", 0.05, {}, True),
        ("qwen2", 0.0, {}, False),
        ("qwen3", 0.05, {}, False),
        ("qwen2", 0.05, {"router": "zeros"}, True),
        ("qwen2", 0.05, {"router": "normal"}, False),
    ],
)
def test_flat_routers_over_experts_that_differ(tmp_path, model_type, noise, later, warned):
    source = qwen_like(tmp_path / "dense", model_type)
    moe = tmp_path / "moe"
    moeify.upcycle(source, moe, num_experts=4, noise=noise, compat="gguf")
    if later:
        moeify.attach(moe, tmp_path / "again", **later)
        moe = tmp_path / "again"
    page = (moe / "README.md").read_text()
    assert ("rounding chooses between" in page) == warned


def test_text_from_files_cannot_break_out(tmp_path):
    card(tmp_path)
    folder = tmp_path / "moe"
    step = Step(
        command=NASTY, options={NASTY: NASTY}, results={"x": [NASTY]}, versions={NASTY: NASTY}
    )
    Record(source=NASTY, revision=NASTY, steps=(step,)).write(folder)
    page = card_text(folder)
    body = page.split("\n---\n", 1)[1]
    assert "<img" not in body
    assert "](javascript" not in body
    headings = re.findall(r"^#+ (.*)$", body, re.M)
    assert len([h for h in headings if "Title" in h]) == 2  # the card's own, and the step's
    for line in body.splitlines():
        if line.startswith("|"):
            assert line.count("|") == 3, line
    assert yaml.safe_load(page.split("---\n")[1])["library_name"] == "transformers"
