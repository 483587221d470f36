"""What the model card says, and that nothing from files can break out of it."""

import json
import re
from dataclasses import replace

import pytest
import transformers
import yaml
from huggingface_hub import ModelCard

import moeify
from moeify.checkpoint.source import Source
from moeify.provenance.card import card_text, write_card
from moeify.provenance.citations import citations
from moeify.provenance.record import Record, Step
from moeify.pruning.criteria import CRITERIA
from moeify.pruning.merging import MERGING
from moeify.upcycling.recipes import RECIPES
from moeify.warming.balances import BALANCES
from moeify.warming.fits import FITS

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
            "text-classification",
            "AutoModelForSequenceClassification",
            False,
        ),
    ],
)
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
    write_card(folder, config, on_hub)
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
        results={
            "eval_loss_before": 3.25,
            "eval_loss_after": 3.125,
            "max_violation_after": 0.5,
            "papers": [*FITS.cited("kmeans"), *BALANCES.cited("switch")],
        },
    )
    prune = Step(
        command="prune",
        options={"by": "reap", "keep": 2, "merge": True},
        results={
            "num_experts": 2,
            "kept": {"0": [1, 3], "1": list(range(40))},
            "papers": [*CRITERIA.cited("reap"), MERGING],
        },
    )
    record.with_step(warm).with_step(prune).write(folder)
    page = card_text(folder)
    rows = (
        "| measured | before | after |",
        "| eval loss | 3.25 | 3.125 |",
        "| max violation after | 0.5 |",
        "| kept 0 | 1, 3 |",
        "| kept 1 | 40 values |",
    )
    for row in rows:
        assert row in page
    assert "changes the routers only" in page
    for paper in ("2101.03961", "2604.13508", "2510.13999", "2310.01334"):
        assert paper in page
    assert "Taking experts out was not followed by training" in page


def test_sizes_are_those_of_the_files(tmp_path):
    """After pruning and with another top-k the numbers of the upcycling no longer hold."""
    report, _ = card(tmp_path)
    moeify.attach(tmp_path / "moe", tmp_path / "one", top_k=1)
    moeify.prune(tmp_path / "one", tmp_path / "less", keep=2, by="random")
    for name in ("moe", "one", "less"):
        page = (tmp_path / name / "README.md").read_text()
        counted = moeify.inspect(tmp_path / name)
        assert f"| parameters of the dense model | {report.params_dense:,} |" in page
        assert f"| parameters in all | {counted.params_total:,} |" in page
        assert f"| parameters used by a token | {counted.params_active:,} |" in page
    assert counted.params_total < report.params_total


def foreign(folder, kind, **sizes):
    """A mixture that somebody else made, as transformers saves it."""
    common = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
    }
    config = getattr(transformers, f"{kind}Config")(**(common | sizes))
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    (folder / "README.md").write_bytes(CARD.replace(b"license", b"base_model: org/base\nlicense"))
    return folder


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Olmoe", {"num_experts": 4}),
        ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16}),
    ],
)
def test_mixtures_that_moeify_did_not_make(tmp_path, kind, sizes):
    report = moeify.prune(foreign(tmp_path / "theirs", kind, **sizes), tmp_path / "ours", keep=3)
    page = ModelCard.load(tmp_path / "ours" / "README.md")
    assert page.data.base_model == "org/base"  # as their card says
    assert page.data.base_model_relation == "finetune"
    assert (page.data.license, page.data.pipeline_tag) == ("apache-2.0", "text-generation")
    assert "# theirs after moeify prune\n" in page.text
    assert f"| parameters in all | {report.params_after:,} |" in page.text
    counted = moeify.inspect(tmp_path / "ours")
    assert f"| parameters used by a token | {counted.params_active:,} |" in page.text
    assert "import AutoModelForCausalLM\n" in page.text
    assert "| transformers | yes, with its own classes |" in page.text
    assert "| keep | 3 |" in page.text
    assert "arXiv:2603.18492" in page.text
    assert "Taking experts out was not followed by training" in page.text
    assert "An upcycled model" not in page.text


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_dense_model_again(tmp_path, family):
    card(tmp_path, (lambda f: qwen_like(f, "qwen3")) if family == "qwen3" else gpt2_like)
    report = moeify.extract(tmp_path / "moe", tmp_path / "again", expert=1)
    page = ModelCard.load(tmp_path / "again" / "README.md")
    assert f"| parameters | {report.params:,} |" in page.text
    assert "moe" not in page.data.tags
    assert page.data.pipeline_tag == "text-generation"
    assert "trust_remote_code" not in page.text
    assert "Taking experts out was not followed by training" in page.text


@pytest.mark.parametrize(("trained", "routers_only", "cut"), [("routers", True, True), ("all", False, False)])
def test_what_training_changed_is_no_limit_any_more(tmp_path, trained, routers_only, cut):
    card(tmp_path)
    folder = tmp_path / "moe"
    prune = Step(command="prune", options={"keep": 2}, results={})
    warm = Step(command="warmup", options={"steps": 9, "train": trained}, results={})
    record = Record.read(Source(folder=folder, name="moe"))
    record.with_step(prune).with_step(warm).write(folder)
    page = card_text(folder)
    assert ("Warm-up changes the routers only" in page) == routers_only
    assert ("Taking experts out was not followed by training" in page) == cut


def test_every_paper_has_authors_title_and_number():
    tables = (CRITERIA, BALANCES, FITS, RECIPES)
    cited = {MERGING, *(paper for table in tables for name in table for paper in table.cited(name))}
    step = Step(command="upcycle", options={}, results={"papers": list(cited)})
    found = citations(Record(source="x").with_step(step).steps)
    assert set(found) == cited and len(cited) >= 11
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
        ("qwen2", 0.05, {"router": "zeros", "top_k": 1}, False),
        ("qwen2", 0.05, {"router": "normal"}, False),
    ],
)
def test_flat_routers_over_experts_that_differ(tmp_path, model_type, noise, later, warned):
    source = qwen_like(tmp_path / "dense", model_type)
    moe = tmp_path / "moe"
    moeify.upcycle(source, moe, num_experts=4, noise=noise, engines=("llama.cpp", "mlx-lm"))
    scaled_for_others = bool({"router": "normal", "top_k": 1}.items() & later.items())
    if later:
        report = moeify.attach(moe, tmp_path / "again", **later)
        moe = tmp_path / "again"
        assert bool(report.warnings) == scaled_for_others
        dense = moeify.verify(source, moe, dtype="float32").relative_diff
        assert (dense > 0.1) == scaled_for_others
    page = (moe / "README.md").read_text()
    assert ("rounding chooses between" in page) == warned
    assert ("experts are scaled for flat routers" in page) == scaled_for_others
    assert ("An upcycled model computes what its base computes" in page) != scaled_for_others


def test_text_from_files_cannot_break_out(tmp_path):
    card(tmp_path)
    folder = tmp_path / "moe"
    step = Step(command=NASTY, options={NASTY: NASTY}, results={"x": [NASTY]}, versions={NASTY: NASTY})
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
