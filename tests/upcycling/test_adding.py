"""Experts that join a mixture: the rest stays what it was, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError, DatasetError, MoeifyError
from moeify.families.mixture import open_mixture
from moeify.families.registry import moe_layout
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.routing.routes import one_expert
from tests.tiny import LM_HEADS, VOCAB, save_tiny, state, tree
from tests.upcycling.specialists import change_config, ffn_tensors, specialist
from tests.upcycling.test_text_routers import own_share
from tests.warming.mixtures import DEMO, corpus


@pytest.fixture(scope="module", params=list(LM_HEADS))
def family(request, tmp_path_factory) -> Path:
    """A base, a specialist and a mixture of three of the base's copies."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(folder / "base", request.param)
    specialist(folder / "base", folder / "new", 5)
    specialist(folder / "base", folder / "newer", 6)
    moeify.upcycle(folder / "base", folder / "moe", num_experts=3, layers="odd")
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    save_tiny(folder / "base", "qwen3")
    specialist(folder / "base", folder / "new", 5)
    moeify.upcycle(folder / "base", folder / "moe", num_experts=3)
    return folder


def logits(folder: Path, expert: int | None = None) -> torch.Tensor:
    model = load_model(folder)
    ids = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        if expert is None:
            return model(ids).logits
        with LoadedMixture(model, moe_layout(model.config.to_dict())).rerouted(one_expert(expert)):
            return model(ids).logits


def test_the_others_stay_and_the_new_ones_compute_their_source(family: Path, tmp_path: Path) -> None:
    report = moeify.add_experts(family / "moe", tmp_path / "more", experts=[family / "new", family / "newer"])
    assert (report.num_experts_before, report.num_experts) == (3, 5)
    assert [origin.experts for origin in report.added] == [(3,), (4,)]
    before, after = state(family / "moe"), state(tmp_path / "more")
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor)
        grown = "router" in name or "mlp.gate.weight" in name or ".experts.up" in name
        assert (len(after[name]) > len(tensor)) == (grown or (".experts.down_proj" in name and "weight" not in name))
    for expert, name in ((3, "new"), (4, "newer")):
        moeify.extract(tmp_path / "more", tmp_path / name, expert=expert)
        wanted, base = ffn_tensors(family / name), ffn_tensors(family / "base")
        for key, tensor in ffn_tensors(tmp_path / name).items():
            layer = int(next(part for part in key.split(".") if part.isdigit()))
            assert torch.equal(tensor, (wanted if layer % 2 else base)[key])
        torch.testing.assert_close(logits(tmp_path / "more", expert), logits(tmp_path / name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(tmp_path / "more", 1), logits(family / "moe", 1))
    assert load_model(tmp_path / "more").num_parameters() == (
        load_model(family / "moe").num_parameters() + report.params_added
    )


def test_what_was_done_is_recorded_and_shown(qwen: Path, tmp_path: Path) -> None:
    moeify.add_experts(qwen / "moe", tmp_path / "more", experts=[qwen / "new"], labels=["logs"])
    record = json.loads((tmp_path / "more" / "moeify.json").read_text())
    assert [step["command"] for step in record["steps"]] == ["upcycle", "add"]
    assert record["steps"][1]["results"]["sources"][0]["label"] == "logs"
    assert str(tmp_path) not in json.dumps(record)
    card = (tmp_path / "more" / "README.md").read_text()
    assert "a mixture of 4 experts" in card
    assert f"{load_model(tmp_path / 'more').num_parameters():,}" in card
    assert "| 3 | logs |" in card


def test_qwen_s_other_files_are_linked(qwen: Path, tmp_path: Path) -> None:
    report = moeify.add_experts(qwen / "moe", tmp_path / "more", experts=[qwen / "new"])
    assert report.files_linked == 1
    assert report.bytes_written < 0.5 * sum(path.stat().st_size for path in (qwen / "moe").glob("*.safetensors"))
    assert moeify.inspect(tmp_path / "more").problems == []


def test_rows_are_as_large_as_those_that_are_there(qwen: Path, tmp_path: Path) -> None:
    moeify.add_experts(qwen / "moe", tmp_path / "more", experts=[qwen / "new"])
    opened = Checkpoint.open(tmp_path / "more")
    view = open_mixture(opened)
    tensors = state(tmp_path / "more")
    for layer in view.moe_layers:
        scaled = (tensors[view.router_name(layer)] * tensors[view.norm(layer).name]).norm(dim=1)
        assert scaled[3] == pytest.approx(float(scaled[:3].square().mean().sqrt()), rel=1e-3)


def test_a_dry_run_writes_nothing(qwen: Path, tmp_path: Path) -> None:
    report = moeify.add_experts(qwen / "moe", tmp_path / "more", experts=[qwen / "new"], dry_run=True)
    done = moeify.add_experts(qwen / "moe", tmp_path / "done", experts=[qwen / "new"])
    assert not (tmp_path / "more").exists()
    assert report.bytes_written == done.bytes_written


@pytest.mark.parametrize("router", ["data", "prompts"])
def test_a_row_from_text_wins_its_label_s_tokens(tmp_path: Path, router: str) -> None:
    base = DEMO / "gpt2"
    specialist(base, tmp_path / "code", 1, scale=0.1)
    moeify.upcycle(base, tmp_path / "moe", num_experts=3)
    texts: dict[str, list[str]] = {"prose": [], "code": []}
    for line in corpus(tmp_path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["domain"]].append(row["text"])
    held_out = {name: listed[-12:] for name, listed in texts.items()}
    (tmp_path / "held_out.json").write_text(json.dumps(held_out), encoding="utf-8")
    prompts = {"code": {"positive": texts["code"][:12], "negative": texts["prose"][:12]}}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    text = (
        {"prompts": tmp_path / "prompts.json"}
        if router == "prompts"
        else {"dataset": str(tmp_path / "corpus.jsonl"), "domain_column": "domain"}
    )
    report = moeify.add_experts(
        tmp_path / "moe",
        tmp_path / "more",
        experts=[tmp_path / "code"],
        router=router,
        fit_tokens=4096,
        seq_len=64,
        **text,
    )
    before, after = state(tmp_path / "moe"), state(tmp_path / "more")
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor)
    assert report.label_agreement is not None
    assert report.label_agreement > 0.85
    share = own_share(tmp_path / "more", tmp_path, {"code": {3}, "prose": {0, 1, 2}})
    assert share > (0.85 if router == "data" else 0.75)


def refused(qwen: Path, tmp_path: Path, expert: Path, moe: str = "moe", **options) -> MoeifyError:
    before = tree(tmp_path)
    with pytest.raises(MoeifyError) as caught:
        moeify.add_experts(qwen / moe, tmp_path / "more", experts=[expert], **options)
    assert tree(tmp_path) == before
    assert caught.value.hint
    return caught.value


def test_other_architectures_and_sizes_are_refused(qwen: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "gpt2", "gpt2")
    save_tiny(tmp_path / "wide", "qwen3", intermediate_size=64, num_hidden_layers=2)
    assert "model_type is gpt2, not qwen3" in refused(qwen, tmp_path, tmp_path / "gpt2").message
    message = refused(qwen, tmp_path, tmp_path / "wide").message
    assert "wide: layers 2, not 4; wide: FFN width 64, not 48" in message


def test_another_activation_is_refused(qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen / "new", tmp_path / "new")
    change_config(tmp_path / "new", hidden_act="gelu")
    message = refused(qwen, tmp_path, tmp_path / "new").message
    assert "hidden_act is 'gelu', not 'silu'" in message


def test_mixtures_and_dense_models_have_their_places(qwen: Path, tmp_path: Path) -> None:
    error = refused(qwen, tmp_path, qwen / "moe")
    assert isinstance(error, CheckpointError)
    assert "is a mixture of experts itself (qwen3_moe)" in error.message
    assert "run moeify upcycle first" in str(refused(qwen, tmp_path, qwen / "new", "base").hint)


def test_a_form_for_llama_cpp_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "qwen2")
    moeify.upcycle(tmp_path / "base", tmp_path / "moe", num_experts=2, engines=("llama.cpp",), noise=0)
    error = refused(tmp_path, tmp_path / "base", tmp_path / "base")
    assert "has flat routers" in error.message


def test_a_label_without_text_is_refused(tmp_path: Path) -> None:
    base = DEMO / "gpt2"
    moeify.upcycle(base, tmp_path / "moe", num_experts=2)
    corpus(tmp_path)
    error = refused(
        tmp_path,
        tmp_path,
        base,
        router="data",
        dataset=str(tmp_path / "corpus.jsonl"),
        domain_column="domain",
        labels=["logs"],
    )
    assert isinstance(error, DatasetError)
    assert "has no text for 'logs'" in error.message


def test_labels_must_fit() -> None:
    with pytest.raises(ConfigError, match="2 labels for 1 entries"):
        moeify.AddConfig(experts=("a",), labels=("x", "y"))
    with pytest.raises(ConfigError, match="no expert is named"):
        moeify.AddConfig()
