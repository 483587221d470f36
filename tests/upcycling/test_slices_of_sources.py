"""Slices of several checkpoints: copy c of every slice is of source c, in every command that knows sources."""

from pathlib import Path

import pytest
import torch

import moeify
from moeify.families.registry import moe_layout
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.routing.routes import one_expert
from moeify.upcycling.verify import verify
from moeify.warming.warmup import warmup
from tests.tiny import save_tiny, state, tolerance
from tests.upcycling.specialists import ffn_tensors, specialist
from tests.warming.mixtures import DEMO, FAST, corpus

IDS = torch.arange(4, 52).reshape(3, 16)
SLICES = 4


@pytest.fixture(scope="module", params=["bert", "gpt2", "modernbert"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two specialists, and their mixture in slices."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(folder / "base", request.param)
    for number, name in enumerate(("one", "two")):
        specialist(folder / "base", folder / name, number)
    entries = [str(folder / name) for name in ("one", "two")]
    report = moeify.upcycle(
        folder / "base", folder / "moe", experts_from=entries, num_experts=3, top_k=1, slices=SLICES, noise=0.1
    )
    assert [origin.experts for origin in report.sources] == [(0, 2, 3, 5, 6, 8, 9, 11), (1, 4, 7, 10)]
    return folder


@torch.no_grad()
def logits(folder: Path, expert: int | None = None) -> torch.Tensor:
    model = load_model(folder)
    if expert is None:
        return model(IDS).logits
    with LoadedMixture(model, moe_layout(model.config.to_dict())).rerouted(one_expert(expert)):
        return model(IDS).logits


def same_ffn(found: Path, wanted: Path) -> bool:
    expected = ffn_tensors(wanted)
    return all(torch.equal(tensor, expected[name]) for name, tensor in ffn_tensors(found).items())


def test_a_copy_of_every_slice_is_its_source(place: Path, tmp_path: Path) -> None:
    for expert, name in enumerate(("one", "two")):
        moeify.extract(place / "moe", tmp_path / name, expert=expert)
        assert same_ffn(tmp_path / name, place / name)
        torch.testing.assert_close(logits(place / "moe", expert), logits(tmp_path / name), rtol=1e-5, atol=1e-5)
    moeify.extract(place / "moe", tmp_path / "repeated", expert=2)  # the first source again, with noise
    assert not same_ffn(tmp_path / "repeated", place / "one")


def test_an_expert_joins_every_slice(place: Path, tmp_path: Path) -> None:
    moeify.upcycle(place / "base", tmp_path / "moe", num_experts=2, top_k=2, slices=SLICES, layers="odd")
    report = moeify.add_experts(tmp_path / "moe", tmp_path / "more", experts=[place / "one", place / "two"])
    assert (report.num_experts_before, report.num_experts) == (8, 16)
    assert [origin.experts for origin in report.added] == [(2, 6, 10, 14), (3, 7, 11, 15)]
    before, after = state(tmp_path / "moe"), state(tmp_path / "more")
    for name, tensor in before.items():
        if len(after[name]) == len(tensor):
            assert torch.equal(after[name], tensor)
        else:
            assert torch.equal(after[name].unflatten(0, (SLICES, 4))[:, :2].flatten(0, 1), tensor), name
    grown, old = (load_model(tmp_path / name).num_parameters() for name in ("more", "moe"))
    assert grown == old + report.params_added
    for expert, source in ((2, "one"), (3, "two")):
        moeify.extract(tmp_path / "more", tmp_path / source, expert=expert)
        torch.testing.assert_close(logits(tmp_path / "more", expert), logits(tmp_path / source), rtol=1e-5, atol=1e-5)
        wanted = ffn_tensors(place / source)
        found = ffn_tensors(tmp_path / source)
        assert all(torch.equal(found[name], wanted[name]) for name in found if ".1." in name)


def test_merging_stays_inside_slices(place: Path, tmp_path: Path) -> None:
    moeify.upcycle(place / "base", tmp_path / "moe", num_experts=4, top_k=1, slices=SLICES, noise=0)
    report = moeify.prune(tmp_path / "moe", tmp_path / "less", keep=2 * SLICES, by="random", merge=True)
    assert report.merged
    assert verify(place / "base", tmp_path / "less").relative_diff <= 2 * tolerance(place.name.rstrip("0123456789"))


def test_experts_are_compared_with_their_slice(place: Path, tmp_path: Path) -> None:
    found = moeify.inspect(place / "moe", weights=True, reference=str(place / "one"))
    for layer in found.layers:
        away = torch.tensor(layer.weights["dense_distance"]["values"]).reshape(SLICES, 3)
        assert (away[:, 0] == 0).all()
        assert (away[:, 1] > 0.2).all()
        torch.testing.assert_close(away[:, 2], torch.full((SLICES,), 0.1), rtol=0.3, atol=0)


def test_rows_from_text_know_the_label_in_every_slice(tmp_path: Path) -> None:
    base = DEMO / "gpt2"
    for number, name in enumerate(("prose", "code")):
        specialist(base, tmp_path / name, number, scale=0.1)
    text = {
        "router": "data",
        "dataset": str(corpus(tmp_path)),
        "domain_column": "domain",
        "fit_tokens": 2048,
        "seq_len": 64,
    }
    entries = [tmp_path / "prose", tmp_path / "code"]
    made = moeify.upcycle(base, tmp_path / "moe", experts_from=entries, top_k=1, slices=2, layers="1", **text)
    assert made.label_agreement is not None
    assert made.label_agreement > 0.85
    again = {"fit": "domains", "steps": 0, "dataset": text["dataset"], "domain_column": "domain"}
    warmup(tmp_path / "moe", tmp_path / "warm", **{**FAST, **again})
    rows = [state(tmp_path / name)["transformer.h.1.mlp.router.weight"] for name in ("moe", "warm")]
    cosine = torch.nn.functional.cosine_similarity(*(part.float() for part in rows))
    assert (cosine > 0.3).all(), "a row an expert, of the same labels"
    moeify.upcycle(base, tmp_path / "copies", num_experts=2, top_k=1, slices=2, layers="1")
    grown = moeify.add_experts(tmp_path / "copies", tmp_path / "more", experts=[tmp_path / "code"], **text)
    assert grown.label_agreement is not None
    assert grown.label_agreement > 0.85
    rows, name = state(tmp_path / "more"), "transformer.h.1.mlp.router.weight"
    assert torch.equal(rows[name].unflatten(0, (2, 3))[:, :2].flatten(0, 1), state(tmp_path / "copies")[name])
