"""Routers that are computed from labelled text or prompts, on the shipped GPT-2."""

import json
import sys
from pathlib import Path

import pytest
import torch

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import DatasetError, MissingExtraError, MoeifyError
from moeify.families.registry import moe_layout
from moeify.routing.collection import InputReservoir, RoutedTokens, collect
from moeify.routing.data import pack
from moeify.routing.fit import label_router
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model, load_tokenizer
from moeify.routing.passes import WholeModel
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.routers import labelled_text
from tests.tiny import save_tiny, tree
from tests.upcycling.specialists import specialist
from tests.warming.mixtures import DEMO, corpus, with_tokenizer

BASE = DEMO / "gpt2"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two specialists, texts of two domains, and prompts."""
    folder = tmp_path_factory.mktemp("text-routers")
    for number, name in enumerate(("one", "two")):
        specialist(BASE, folder / name, number, scale=0.1)
    corpus(folder)
    texts: dict[str, list[str]] = {"prose": [], "code": []}
    for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["domain"]].append(row["text"])
    prompts = {"code": texts["code"][:8], "prose": {"positive": texts["prose"][:8], "negative": texts["code"][8:12]}}
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    held_out = {name: listed[-12:] for name, listed in texts.items()}
    (folder / "held_out.json").write_text(json.dumps(held_out), encoding="utf-8")
    return folder


def own_share(moe: Path, place: Path, owners: dict[str, set[int]]) -> float:
    """How many of the texts' tokens have an expert of their domain as their first, on average."""
    model, tokenizer = load_model(moe), load_tokenizer(moe)
    texts = json.loads((place / "held_out.json").read_text(encoding="utf-8"))
    documents = [(tokenizer(t)["input_ids"], name) for name, listed in texts.items() for t in listed]
    blocks = pack(documents, 64, 0)
    hits: list[torch.Tensor] = []

    def observe(tokens: RoutedTokens) -> None:
        assert tokens.domains is not None
        for domain, name in enumerate(blocks.domain_names):
            first = tokens.experts[tokens.domains == domain, 0]
            hits.append(torch.isin(first, torch.tensor(sorted(owners[name]))))

    collect(WholeModel(model), moe_layout(model.config.to_dict()), blocks, observe)
    return float(torch.cat(hits).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("router", ["data", "prompts"])
@pytest.mark.parametrize("rest", ["base", "mean"])
def test_tokens_go_to_the_experts_of_their_label(place: Path, tmp_path: Path, router: str, rest: str) -> None:
    text = (
        {"prompts": place / "prompts.json"}
        if router == "prompts"
        else {"dataset": str(place / "corpus.jsonl"), "domain_column": "domain"}
    )
    report = moeify.upcycle(
        BASE,
        tmp_path / "moe",
        experts_from=[place / "one", place / "two"],
        num_experts=4,
        labels=["prose", "code"],
        router=router,
        rest=rest,
        fit_tokens=4096,
        seq_len=64,
        **text,
    )
    share = own_share(tmp_path / "moe", place, {"prose": {0, 2}, "code": {1, 3}})
    assert report.label_agreement is not None
    assert report.label_agreement > (0.9 if router == "data" else 0.75)
    assert share > (0.85 if router == "data" else 0.75)
    step = json.loads((tmp_path / "moe" / "moeify.json").read_text())["steps"][0]
    assert step["results"]["label_agreement"] == report.label_agreement
    assert str(tmp_path.parent) not in json.dumps(step)


def test_rows_are_fitted_to_what_routers_of_sequences_read(place: Path, tmp_path: Path) -> None:
    text = options(place, fit_tokens=8192)
    for route_by in ("token", "sequence"):
        moeify.upcycle(BASE, tmp_path / route_by, route_by=route_by, **text)
    shares = [own_share(tmp_path / name, place, {"prose": {0}, "code": {1}}) for name in ("token", "sequence")]
    assert shares[1] > shares[0] > 0.85


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"route_by": "sequence", "layers": "odd", "checksum": True}),
        ("bert", {"rest": "mean"}),
        ("qwen3", {"layers": "1"}),
    ],
)
def test_each_router_is_fitted_to_what_it_reads_behind_the_others(
    place: Path, tmp_path: Path, base: str, changes: dict[str, object]
) -> None:
    """Fitting once more, to the inputs that the finished mixture has, gives the same rows."""
    model, experts = BASE, [tmp_path / "one", tmp_path / "two"]
    if base != "gpt2":
        model = with_tokenizer(save_tiny(tmp_path / "base", base, vocab_size=2048))
    for number, folder in enumerate(experts):
        specialist(model, folder, number, scale=1.0)  # far apart
    seen: dict[str, list[tuple[int, int]]] = {}
    with moeify.watch_progress(lambda stage: seen.setdefault(stage.name, []).append((stage.done, stage.total))):
        moeify.upcycle(model, tmp_path / "moe", **options(place, experts_from=experts, fit_tokens=2048, **changes))
    seen.pop("loading the model", None)  # unless layers are loaded one by one
    assert list(seen)[:4] == ["reading text", "checking weights", "writing", "fitting routers"]
    fitting = seen["fitting routers"]
    assert fitting == sorted(fitting)
    assert fitting[0][0] == 0 < fitting[-1][0] == fitting[-1][1]
    assert not [path for path in (tmp_path / "moe").iterdir() if path.name.startswith(".")]
    config, loaded = UpcycleConfig(**options(place, fit_tokens=2048)), load_model(tmp_path / "moe")
    text = labelled_text(config, Checkpoint.open(tmp_path / "moe"), ["prose", "code"])
    inputs = InputReservoir(text.fit.tokens)
    layout = moe_layout(loaded.config.to_dict())
    collect(WholeModel(loaded), layout, text.fit, inputs)
    for layer, found in LoadedMixture(loaded, layout).layers.items():
        owners = [text.fit.domain_names.index(name) for name in ("prose", "code")]
        again = label_router(inputs.inputs(layer), inputs.domains(layer), owners=owners, seed=layer)
        torch.testing.assert_close(found.router.weight.detach(), again, rtol=1e-3, atol=1e-4)


def options(place: Path, **changes: object) -> dict[str, object]:
    return {
        "experts_from": [place / "one", place / "two"],
        "labels": ["prose", "code"],
        "router": "data",
        "dataset": str(place / "corpus.jsonl"),
        "domain_column": "domain",
        "fit_tokens": 1024,
        "seq_len": 64,
        **changes,
    }


def refused(place: Path, tmp_path: Path, **changes: object) -> MoeifyError:
    before = tree(tmp_path)
    with pytest.raises(MoeifyError) as caught:
        moeify.upcycle(BASE, tmp_path / "moe", **options(place, **changes))
    assert tree(tmp_path) == before
    assert caught.value.hint
    return caught.value


def test_a_fit_that_ends_midway_leaves_nothing(place: Path, tmp_path: Path) -> None:
    def stop(stage: moeify.Stage) -> None:
        if stage.name == "fitting routers" and stage.done:  # of the first layer, in weights that are written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), moeify.watch_progress(stop):
        moeify.upcycle(BASE, tmp_path / "moe", **options(place))
    assert not tree(tmp_path)


def test_tokens_that_the_model_does_not_know_are_refused(place: Path, tmp_path: Path) -> None:
    small = with_tokenizer(save_tiny(tmp_path / "small", "gpt2"))  # a vocabulary of 64
    before = tree(tmp_path)
    with pytest.raises(DatasetError, match=r"makes token \d+, the model knows 64 tokens"):
        moeify.upcycle(small, tmp_path / "moe", **options(place, experts_from=[small, small]))
    assert tree(tmp_path) == before


def test_a_missing_extra_is_named_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.hooks", None)
    error = refused(place, tmp_path)
    assert isinstance(error, MissingExtraError)
    assert "moeify[train]" in str(error.hint)


def test_a_label_without_text_is_refused(place: Path, tmp_path: Path) -> None:
    error = refused(place, tmp_path, labels=["prose", "german"])
    assert isinstance(error, DatasetError)
    assert error.message == "column 'domain' has no text for 'german': it names 'code', 'prose'"


def test_text_without_an_expert_is_refused(place: Path, tmp_path: Path) -> None:
    error = refused(place, tmp_path, labels=["prose", "prose"])
    assert error.message == "column 'domain' names 'code', which no expert has as its label"


def test_fewer_prompts_than_labels_are_refused(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("prose: [once upon a time]\n")
    changes = {"router": "prompts", "dataset": None, "domain_column": None, "prompts": path}
    error = refused(place, tmp_path, **changes)
    assert error.message == "prompts.yaml has no text for 'code': it names 'prose'"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1, 2]", "is no mapping of names to values"),
        ("prose: [once]\ncode: {good: [x]}", "label 'code' has the keys good"),
        ("prose: [once]\ncode: [1]", "positive of label 'code' is no list of texts"),
        ("prose: [once]\ncode: []", "positive of label 'code' is no list of texts"),
        ("prose: [once\ncode", "is no valid YAML"),
    ],
)
def test_prompts_of_another_form_are_refused(place: Path, tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    changes = {"router": "prompts", "dataset": None, "domain_column": None, "prompts": path}
    assert part in refused(place, tmp_path, **changes).message


def test_a_label_needs_tokens_for_each_of_its_experts(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("prose: [once upon a time there was a king who had three sons and a garden]\ncode: [x]\n")
    changes = {"router": "prompts", "dataset": None, "domain_column": None, "prompts": path}
    message = refused(place, tmp_path, **changes, num_experts=6).message
    assert message.startswith("label 'code' has ")
    assert message.endswith(" tokens for 3 experts, which need 4 each")


def test_a_missing_file_of_prompts_is_refused(place: Path, tmp_path: Path) -> None:
    changes = {"router": "prompts", "dataset": None, "domain_column": None}
    error = refused(place, tmp_path, **changes, prompts=tmp_path / "none.yaml")
    assert error.message == f"none.yaml is missing from {tmp_path}"


def test_prompts_that_are_no_json_are_refused(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text("{prose: [once]}")
    changes = {"router": "prompts", "dataset": None, "domain_column": None, "prompts": path}
    assert refused(place, tmp_path, **changes).message == "prompts.json is not valid JSON"


def test_a_dry_run_checks_the_text_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    report = moeify.upcycle(BASE, tmp_path / "moe", dry_run=True, **options(place))
    assert report.dry_run
    assert not (tmp_path / "moe").exists()
