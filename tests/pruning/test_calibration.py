"""Scores of one pass over text: right to 1e-5, resumable, reusable, guarded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import ConfigError, DatasetError, RoutingError
from moeify.families.mixture import Mixture
from moeify.pruning.calibration import calibrate
from moeify.pruning.criteria import CRITERIA
from moeify.pruning.measuring import measured
from moeify.pruning.opening import open_prunable
from moeify.pruning.prune import prune
from moeify.pruning.scores import LayerScores, Scores, checkpoint_fingerprint
from moeify.routing.data import Blocks
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.routing.passes import WholeModel
from tests.pruning.oracle import brute_force
from tests.pruning.tiny_mixtures import EXPERTS, MODEL_TYPES, TOP_K, save

CALIBRATED = ("frequency", "gate", "ean", "reap")


def blocks(rows: int = 6, length: int = 12) -> Blocks:
    draw = np.random.default_rng(3)
    lengths = np.full(rows, length)
    lengths[-1] = length - 5
    ids = draw.integers(3, 60, (rows, length)).astype(np.int32)
    return Blocks(input_ids=ids, lengths=lengths, domains=None, domain_names=(), documents=rows)


def fresh(mixture: Mixture) -> Scores:
    layers = {n: LayerScores.empty(EXPERTS) for n in mixture.moe_layers}
    fingerprint = checkpoint_fingerprint(mixture)
    return Scores(source="m", fingerprint=fingerprint, data="d", dataset="t", layers=layers)


@pytest.mark.parametrize(
    "model_type", ["bert_moe", "gpt2_moe", "qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss", "llama4_text"]
)
def test_scores_are_the_formulas(model_type: str, tmp_path: Path) -> None:
    model = save(model_type, tmp_path / "m")
    mixture = open_prunable(Checkpoint.open(tmp_path / "m"))
    scores, text = fresh(mixture), blocks()
    calibrate(WholeModel(model), mixture, text, scores, batch_size=4, save_to=tmp_path / "s.json")
    wanted = brute_force(model_type, model, text.inputs(), TOP_K)
    assert scores.layers.keys() == wanted.keys()
    for layer, sums in scores.layers.items():
        assert sums.tokens == text.tokens
        assert sums.sums["frequency"].sum() == text.tokens * TOP_K
        for name in CALIBRATED:
            expected = wanted[layer][name].numpy()
            found = CRITERIA[name].formula(sums.sums)
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-5), (layer, name)
        assert np.allclose(sums.sums["max_norm"], wanted[layer]["max_norm"].numpy(), rtol=1e-5)


@pytest.mark.parametrize("model_type", ["bert_moe", "gpt2_moe"])
def test_whole_sequences_are_counted_where_they_go(model_type: str, tmp_path: Path) -> None:
    from moeify.routing.collection import collect
    from moeify.routing.statistics import RoutingStatistics

    save(model_type, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"route_by": "sequence"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path / "m")
    mixture = open_prunable(Checkpoint.open(tmp_path / "m"))
    scores, text, routed = fresh(mixture), blocks(), RoutingStatistics()
    calibrate(WholeModel(model), mixture, text, scores, batch_size=4, save_to=tmp_path / "s.json")
    collect(WholeModel(model), mixture.layout, text, routed)
    for layer, sums in scores.layers.items():
        counts = routed.layers[layer].tokens_per_expert
        assert np.array_equal(sums.sums["frequency"], counts)
        assert np.allclose(sums.sums["gate"], routed.layers[layer].gate_mass, rtol=1e-6)
        if model_type == "bert_moe":  # five texts of 12 tokens and one of 7, each at one place
            assert {count % 12 for count in counts} <= {0, 7}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_measuring_leaves_the_model_as_it_was(model_type: str, tmp_path: Path) -> None:
    model = save(model_type, tmp_path / "m")
    mixture = open_prunable(Checkpoint.open(tmp_path / "m"))
    text, scores = blocks(), fresh(mixture)
    with torch.no_grad():
        before = model(**text.inputs()).logits
        with measured(LoadedMixture(model, mixture.layout), scores.layers) as expect:
            expect(text.inputs()["attention_mask"])
            during = model(**text.inputs()).logits
        after = model(**text.inputs()).logits
    assert torch.equal(before, after)
    assert not any("forward" in vars(module) for module in model.modules())
    assert (before - during).abs().max() < 1e-4
    assert all(sums.tokens == text.tokens for sums in scores.layers.values())


def test_an_interrupted_pass_goes_on_where_it_ended(tmp_path: Path) -> None:
    model = save("mixtral", tmp_path / "m")
    mixture = open_prunable(Checkpoint.open(tmp_path / "m"))
    whole, halved, path = fresh(mixture), fresh(mixture), tmp_path / "s.json"
    calibrate(WholeModel(model), mixture, blocks(), whole, batch_size=2, save_to=path)
    assert not path.exists()
    second_layer, calls = model.model.layers[1].mlp.experts, []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = second_layer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(WholeModel(model), mixture, blocks(), halved, batch_size=2, save_to=path)
    handle.remove()
    kept = Scores.read(path, mixture)
    assert kept.batches == 1 and not kept.complete
    calibrate(WholeModel(model), mixture, blocks(), kept, batch_size=2, save_to=path)
    for layer, sums in whole.layers.items():
        for name, row in sums.sums.items():
            assert np.array_equal(row, kept.layers[layer].sums[name])


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of GPT-2 on real text, its experts apart by noise."""
    from tests.real.checkpoints import demo_gpt2

    folder = tmp_path_factory.mktemp("warm") / "moe"
    moeify.upcycle(demo_gpt2(), folder, num_experts=6, top_k=2, noise=0.3)
    return folder


TEXT = Path(moeify.__file__).parent / "demo" / "text.jsonl"
OPTIONS = {"dataset": str(TEXT), "max_tokens": 4000, "seq_len": 64}


def test_one_calibration_serves_every_ratio_and_criterion(warm: Path, tmp_path: Path) -> None:
    first = prune(warm, tmp_path / "a", keep=4, by="reap", **OPTIONS)
    document = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert document["complete"] and document["schema"] == "moeify.scores/1"
    wanted = {*CALIBRATED, "aimer", "ean_mean", "max_norm"}
    assert all(wanted <= values.keys() for values in document["layers"].values())
    assert first.tokens == document["tokens"] > 2000
    again = prune(warm, tmp_path / "b", keep=4, by="reap", scores=tmp_path / "a" / "scores.json")
    assert again.kept == first.kept and again.scores == first.scores
    for by in CALIBRATED:
        report = prune(warm, tmp_path / by, keep=2, by=by, scores=tmp_path / "a" / "scores.json")
        for layer, kept in report.kept.items():
            safe = set(report.protected.get(layer, ()))
            order = sorted(range(6), key=lambda e: (e not in safe, -report.scores[layer][e]))
            assert set(kept) == set(order[:2])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_scores_go_where_the_user_wants_them(warm: Path, tmp_path: Path) -> None:
    prune(warm, tmp_path / "a", keep=4, scores=tmp_path / "mine.json", **OPTIONS)
    prune(warm, tmp_path / "b", keep=3, scores=tmp_path / "mine.json")
    assert json.loads((tmp_path / "mine.json").read_text())["complete"]


def test_super_experts_stay(warm: Path, tmp_path: Path) -> None:
    prune(warm, tmp_path / "a", keep=4, **OPTIONS)
    path = tmp_path / "a" / "scores.json"
    document = json.loads(path.read_text())
    document["layers"]["0"]["max_norm"][3] = 1e6
    document["layers"]["0"]["weighted_norm"][3] = 0.0
    path.write_text(json.dumps(document))
    safe = prune(warm, tmp_path / "safe", keep=2, scores=path)
    assert safe.protected == {0: (3,)} and 3 in safe.kept[0]
    bold = prune(warm, tmp_path / "bold", keep=2, scores=path, protect=False)
    assert not bold.protected and 3 not in bold.kept[0]


def test_held_out_loss_stands_beside_chance(warm: Path, tmp_path: Path) -> None:
    report = prune(warm, tmp_path / "a", keep=3, evaluate=True, **OPTIONS)
    loss = report.held_out
    assert loss is not None and len(loss.random) == 3 and loss.tokens > 100
    assert loss.random_mean == pytest.approx(sum(loss.random) / 3)
    assert not loss.better_than_chance or loss.after < min(loss.random)
    assert loss.before_error and loss.after_error and loss.change_error
    assert loss.change_error < loss.before_error + loss.after_error  # blocks are compared one by one
    said = any("does not clearly beat chance" in warning for warning in report.warnings)
    assert said != loss.better_than_chance
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    record = json.loads((tmp_path / "a" / "moeify.json").read_text())
    assert record["steps"][-1]["results"]["held_out"]["before"] == loss.before


def test_copies_lose_nothing(tmp_path: Path) -> None:
    """Identical experts with renormalised weights: any E' >= K computes the same."""
    from tests.real.checkpoints import demo_gpt2

    moeify.upcycle(demo_gpt2(), tmp_path / "moe", num_experts=6, top_k=2, noise=0.0)
    ids = torch.arange(2, 50).view(2, 24)
    with torch.no_grad():
        wanted = load_model(tmp_path / "moe")(input_ids=ids).logits
        for keep in (2, 5):
            prune(tmp_path / "moe", tmp_path / str(keep), keep=keep, by="random")
            found = load_model(tmp_path / str(keep))(input_ids=ids).logits
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_growth_of_weights_is_reported_and_can_be_folded_in(tmp_path: Path) -> None:
    model = save("qwen2_moe", tmp_path / "m")
    mixture = open_prunable(Checkpoint.open(tmp_path / "m"))
    scores, path = fresh(mixture), tmp_path / "s.json"
    calibrate(WholeModel(model), mixture, blocks(), scores, batch_size=4, save_to=path)
    scores.complete = True
    scores.write(path)
    plain = prune(tmp_path / "m", tmp_path / "plain", keep=4, scores=path)
    scaled = prune(tmp_path / "m", tmp_path / "scaled", keep=4, scores=path, rescale=True)
    assert plain.gate_inflation == scaled.gate_inflation and scaled.rescaled
    assert all(1 < factor < 8 for factor in plain.gate_inflation.values())
    from safetensors.torch import load_file

    before, after = (load_file(tmp_path / n / "model-00001-of-00002.safetensors") for n in ("plain", "scaled"))
    for name, tensor in before.items():
        layer = int(name.split(".")[2]) if ".experts." in name else 0
        factor = 1 / plain.gate_inflation[layer] if ".experts." in name and "down" in name else 1.0
        assert torch.allclose(after[name], tensor * factor, rtol=1e-6)


def test_bad_input(warm: Path, tmp_path: Path) -> None:
    prune(warm, tmp_path / "a", keep=4, **OPTIONS)
    scores = tmp_path / "a" / "scores.json"
    other = tmp_path / "other"
    moeify.upcycle(moeify_demo(), other, num_experts=6, top_k=2, noise=0.3, seed=1)
    with pytest.raises(RoutingError, match="whose weights are not those of other"):
        prune(other, tmp_path / "x", keep=4, scores=scores)
    with pytest.raises(RoutingError, match="is no file of scores"):
        prune(warm, tmp_path / "x", keep=4, scores=warm / "config.json")
    document = json.loads(scores.read_text()) | {"complete": False}
    scores.write_text(json.dumps(document))
    with pytest.raises(RoutingError, match="was interrupted") as caught:
        prune(warm, tmp_path / "x", keep=4, scores=scores)
    assert "text.jsonl" in str(caught.value.hint)
    with pytest.raises(DatasetError):
        prune(warm, tmp_path / "x", keep=4, dataset=str(tmp_path / "nothing.txt"))
    small = tmp_path / "small"
    shutil.copytree(warm, small)
    tokenizer = AutoTokenizer.from_pretrained(small)
    known = len(tokenizer)
    assert tokenizer.add_tokens(["of the"])  # stands in the text; the embeddings do not grow
    tokenizer.save_pretrained(small)
    with pytest.raises(DatasetError, match=f"makes token {known}, the model knows {known} tokens"):
        prune(small, tmp_path / "x", keep=4, **OPTIONS)
    with pytest.raises(ConfigError, match="nothing to rescale"):
        prune(warm, tmp_path / "x", keep=4, scores=scores, rescale=True)
    assert not (tmp_path / "x").exists()


def moeify_demo() -> Path:
    from tests.real.checkpoints import demo_gpt2

    return demo_gpt2()
