"""Experts from several checkpoints: exact, each its source's, and refused where they cannot be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeify
from moeify.errors import CheckpointError, ConfigError, TensorNotFoundError
from moeify.families.registry import moe_layout
from moeify.provenance.card import _origins
from moeify.provenance.record import Record, Step
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.routing.routes import one_expert
from tests.tiny import LM_HEADS, VOCAB, save_tiny, state, tree
from tests.upcycling.specialists import change_config, dense_view, ffn_tensors, specialist, spoil

FAMILIES = list(LM_HEADS)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Path:
    """A folder with ``base`` and three specialists of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(folder / "base", request.param)
    for number, name in enumerate("abc"):
        specialist(folder / "base", folder / name, number)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    save_tiny(folder / "base", "qwen3")
    specialist(folder / "base", folder / "a", 1)
    specialist(folder / "base", folder / "b", 2)
    return folder


def logits(folder: Path, expert: int | None = None) -> torch.Tensor:
    model = load_model(folder)
    ids = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(3))
    route = None if expert is None else one_expert(expert)
    layout = None if expert is None else moe_layout(model.config.to_dict())
    with torch.inference_mode():
        if layout is None:
            return model(ids).logits
        with LoadedMixture(model, layout).rerouted(route):
            return model(ids).logits


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_sources_equal_to_the_base_are_exact(family: Path, tmp_path: Path) -> None:
    base = str(family / "base")
    moeify.upcycle(base, tmp_path / "moe", experts_from=[base] * 4, noise=0)
    assert relative(logits(tmp_path / "moe"), logits(family / "base")) <= 1e-6


def test_a_forced_expert_computes_its_source(family: Path, tmp_path: Path) -> None:
    sources = [family / name for name in "abc"]
    moeify.upcycle(family / "base", tmp_path / "moe", experts_from=sources)
    dense = [logits(source) for source in sources]
    for expert, wanted in enumerate(dense):
        found = logits(tmp_path / "moe", expert)
        assert relative(found, wanted) <= 1e-6
        assert all(relative(found, other) > 0.01 for other in dense if other is not wanted)


def test_extract_returns_the_source_bit_for_bit(family: Path, tmp_path: Path) -> None:
    sources = [family / name for name in "abc"]
    moeify.upcycle(family / "base", tmp_path / "moe", experts_from=sources, layers="odd")
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=2)
    found, base = ffn_tensors(tmp_path / "dense"), ffn_tensors(family / "base")
    for name, wanted in ffn_tensors(family / "c").items():
        layer = int(next(part for part in name.split(".") if part.isdigit()))
        assert torch.equal(found[name], wanted if layer % 2 else base[name])


@pytest.mark.parametrize("shares", [(), (3.0, 1.0)])
def test_extract_averages_experts(family: Path, tmp_path: Path, shares) -> None:
    sources = [family / name for name in "abc"]
    moeify.upcycle(family / "base", tmp_path / "moe", experts_from=sources)
    report = moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=(2, 0), shares=shares)
    share = 0.75 if shares else 0.5
    assert (report.expert, report.experts, report.weights) == (None, (2, 0), (share, 1 - share))
    first, third = ffn_tensors(family / "a"), ffn_tensors(family / "c")
    for name, tensor in ffn_tensors(tmp_path / "dense").items():
        torch.testing.assert_close(tensor, share * third[name] + (1 - share) * first[name])
    assert load_model(tmp_path / "dense").num_parameters() == report.params


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"expert": (0, 7)}, "there is no expert 7: the experts are 0 to 2"),
        ({"expert": (0, 0)}, "an expert is named twice"),
        ({"expert": (0, -1)}, "experts are counted from 0, not -1"),
        ({"expert": (0, 1), "shares": (1.0,)}, "1 shares for 2 experts"),
        ({"expert": (0, 1), "shares": (1.0, -1.0)}, "numbers of a positive sum"),
    ],
)
def test_means_that_cannot_be_are_refused(qwen: Path, tmp_path: Path, options: dict, part: str) -> None:
    moeify.upcycle(qwen / "base", tmp_path / "moe", num_experts=3)
    with pytest.raises(ConfigError, match=part):
        moeify.extract(tmp_path / "moe", tmp_path / "dense", **options)
    assert not (tmp_path / "dense").exists()


def test_experts_are_dealt_out_and_only_repeats_take_noise(family: Path, tmp_path: Path) -> None:
    report = moeify.upcycle(
        family / "base",
        tmp_path / "moe",
        num_experts=5,
        noise=0.05,
        labels=["code", "german"],
        experts_from=[family / "a", family / "b"],
    )
    assert [(s.name, s.label, s.experts) for s in report.sources] == [
        ("a", "code", (0, 2, 4)),
        ("b", "german", (1, 3)),
    ]
    assert report.noise_effective == pytest.approx(0.05, rel=0.1)
    for expert in range(5):
        moeify.extract(tmp_path / "moe", tmp_path / str(expert), expert=expert)
        source = ffn_tensors(family / "ab"[expert % 2])
        for name, tensor in ffn_tensors(tmp_path / str(expert)).items():
            moved = (tensor - source[name]).std() / source[name].std()
            noisy = expert > 1 and tensor.ndim > 1
            assert moved == pytest.approx(0.05 if noisy else 0, rel=0.15)


def test_the_rest_comes_from_the_base(family: Path, tmp_path: Path) -> None:
    for number, name in enumerate("xy"):
        specialist(family / "base", tmp_path / name, number, everything=True)
    moeify.upcycle(family / "base", tmp_path / "moe", experts_from=[tmp_path / "x", tmp_path / "y"])
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=1)
    experts, found = ffn_tensors(tmp_path / "y"), dense_view(tmp_path / "dense").base
    written, base = state(tmp_path / "dense"), state(family / "base")
    stored = dense_view(family / "base").base
    for name, tensor in found.items():
        assert torch.equal(written[tensor.name], experts.get(name, base[stored[name].name]))


@pytest.mark.parametrize("shares", [None, [3.0, 1.0]])
def test_the_rest_can_be_the_mean_of_all(family: Path, tmp_path: Path, shares) -> None:
    for number, name in enumerate("xy"):
        specialist(family / "base", tmp_path / name, number, everything=True)
    moeify.upcycle(
        family / "base",
        tmp_path / "moe",
        rest="mean",
        shares=shares or (),
        experts_from=[tmp_path / "x", tmp_path / "y"],
    )
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=1)
    first, second = (state(tmp_path / name) for name in "xy")
    share = 0.75 if shares else 0.5
    experts, written = ffn_tensors(tmp_path / "y"), state(tmp_path / "dense")
    stored = dense_view(tmp_path / "x").base
    for name, tensor in dense_view(tmp_path / "dense").base.items():
        old = stored[name].name
        mean = share * first[old] + (1 - share) * second[old]
        torch.testing.assert_close(written[tensor.name], experts.get(name, mean))


def test_what_was_done_is_recorded(qwen: Path, tmp_path: Path) -> None:
    moeify.upcycle(qwen / "base", tmp_path / "moe", experts_from=[qwen / "a", qwen / "b"], labels=["x", "y"])
    step = json.loads((tmp_path / "moe" / "moeify.json").read_text())["steps"][0]
    assert step["options"]["experts_from"] == ["a", "b"]
    assert step["results"]["sources"][1] == {
        "name": "b",
        "revision": None,
        "label": "y",
        "experts": [1],
        "adapter": False,
    }
    assert str(tmp_path) not in (tmp_path / "moe" / "moeify.json").read_text()
    card = (tmp_path / "moe" / "README.md").read_text()
    assert "| 1 | y | b |" in card
    assert "put together without training" in card
    assert "arXiv:2403.07816" in card


def test_the_card_names_every_model_on_the_hub() -> None:
    sources = [
        {"name": "me/code", "revision": "c" * 40, "label": "code", "experts": [0]},
        {"name": "folder", "revision": None, "label": "x", "experts": [1]},
    ]
    step = Step(command="upcycle", options={}, results={"sources": sources}, versions={})
    record = Record(source="org/base", revision="b" * 40, steps=(step,))
    assert _origins(record) == ["org/base", "me/code"]


def refused(qwen: Path, tmp_path: Path, source: Path, **options: object) -> str:
    """The message of the refusal; nothing may be written."""
    before = tree(tmp_path)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        moeify.upcycle(qwen / "base", tmp_path / "moe", experts_from=[qwen / "a", source], **options)
    assert tree(tmp_path) == before
    assert caught.value.hint
    return caught.value.message


def test_another_architecture_is_refused(qwen: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "gpt2", "gpt2")
    assert "gpt2: its model_type is gpt2, not qwen3" in refused(qwen, tmp_path, other)


def test_every_difference_in_size_is_listed(qwen: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "qwen3", intermediate_size=64, num_hidden_layers=2)
    message = refused(qwen, tmp_path, other)
    assert "layers 2, not 4" in message
    assert "FFN width 64, not 48" in message


def test_another_activation_is_refused(qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen / "b", tmp_path / "b")
    change_config(tmp_path / "b", hidden_act="gelu")
    assert "hidden_act is 'gelu', not 'silu'" in refused(qwen, tmp_path, tmp_path / "b")


def test_a_mixture_is_refused_as_a_source(qwen: Path, tmp_path: Path) -> None:
    moeify.upcycle(qwen / "base", tmp_path / "mixture", num_experts=2)
    message = refused(qwen, tmp_path, tmp_path / "mixture")
    assert message == "mixture, a source of experts, is a mixture of experts itself (qwen3_moe)"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"labels": ["one"]}, "1 labels for 2 entries"),
        ({"shares": [1.0, 2.0]}, "--shares belong to --rest mean"),
        ({"rest": "mean", "shares": [1.0]}, "1 shares for 2 entries"),
        ({"rest": "mean", "shares": [-1.0, 1.0]}, "shares must be 0 or more"),
        ({"router": "data"}, "--router data needs text"),
        ({"router": "data", "dataset": "x.jsonl"}, "needs to know each text's label"),
        ({"router": "prompts"}, "--router prompts needs text"),
        ({"prompts": Path("x.yaml")}, "--prompts has no use with --router calibrated"),
    ],
)
def test_options_that_do_not_fit_are_refused(qwen: Path, tmp_path: Path, options: dict, part: str) -> None:
    assert part in refused(qwen, tmp_path, qwen / "b", **options)


def test_nan_in_any_source_is_found_and_nothing_is_kept(qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen / "b", tmp_path / "b")
    spoil(tmp_path / "b" / "model.safetensors", "model.layers.2.mlp.up_proj.weight")
    message = refused(qwen, tmp_path, tmp_path / "b")
    assert "'model.layers.2.mlp.up_proj.weight'" in message
    assert "holds NaN" in message


def test_more_sources_than_experts_are_refused(qwen: Path) -> None:
    with pytest.raises(ConfigError, match="3 entries of --experts-from do not fit into 2 experts"):
        moeify.UpcycleConfig(experts_from=("a", "b", "c"), num_experts=2)


def test_names_may_stand_in_one_string() -> None:
    config = moeify.UpcycleConfig(experts_from="a, b,c", labels="x,y,z")
    assert config.experts_from == ("a", "b", "c")
    assert config.labels == ("x", "y", "z")
    assert config.experts == 3


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are none"):
        moeify.UpcycleConfig(rest="mean")


def warnings(qwen: Path, source: Path) -> tuple[str, ...]:
    report = moeify.upcycle(qwen / "base", dry_run=True, experts_from=[qwen / "a", source])
    return report.warnings


def test_another_dtype_is_converted_and_said(qwen: Path, tmp_path: Path) -> None:
    half = save_tiny(tmp_path / "half", "qwen3", dtype="bfloat16")
    assert "half: its weights are BF16 and are converted" in " ".join(warnings(qwen, half))
    moeify.upcycle(qwen / "base", tmp_path / "moe", experts_from=[half, qwen / "a"])
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=0)
    for name, tensor in ffn_tensors(tmp_path / "dense").items():
        assert torch.equal(tensor, ffn_tensors(half)[name].float())


def test_another_config_and_vocabulary_are_said(qwen: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "qwen3", vocab_size=VOCAB + 8, rms_norm_eps=1e-5)
    said = " ".join(warnings(qwen, other))
    assert f"its vocabulary has {VOCAB + 8} entries and the base's {VOCAB}" in said
    assert "rms_norm_eps 1e-05 instead of 1e-06" in said


def test_tokens_that_differ_are_named(qwen: Path, tmp_path: Path) -> None:
    vocabularies = {"base": {"a": 0, "b": 1, "c": 2}, "b": {"a": 0, "c": 1, "b": 2, "<tool>": 3}}
    for name, vocabulary in vocabularies.items():
        shutil.copytree(qwen / name, tmp_path / name)
        document = {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document))
    report = moeify.upcycle(tmp_path / "base", dry_run=True, experts_from=[tmp_path / "base", tmp_path / "b"])
    assert report.warnings == (
        "b: its tokenizer differs in 3 tokens ('c', 'b', '<tool>'); the base's tokenizer is used",
    )


@pytest.mark.parametrize("rest", ["base", "mean"])
def test_a_source_may_lack_its_head_where_only_ffns_are_taken(qwen: Path, tmp_path: Path, rest: str) -> None:
    headless = shutil.copytree(qwen / "b", tmp_path / "headless")
    config = json.loads((headless / "config.json").read_text()) | {"tie_word_embeddings": False}
    (headless / "config.json").write_text(json.dumps(config))
    tensors = load_file(headless / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    save_file(tensors, headless / "model.safetensors")
    sources = [qwen / "a", headless]
    if rest == "mean":
        with pytest.raises(CheckpointError, match=r"headless: it has no lm_head\.weight"):
            moeify.upcycle(qwen / "base", tmp_path / "moe", experts_from=sources, rest="mean")
        return
    moeify.upcycle(qwen / "base", tmp_path / "moe", experts_from=sources)
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=1)
    for name, tensor in ffn_tensors(tmp_path / "dense").items():
        assert torch.equal(tensor, ffn_tensors(qwen / "b")[name])
    with pytest.raises(TensorNotFoundError, match=r"lm_head\.weight"):
        moeify.upcycle(headless, tmp_path / "other")
