"""Calibration with one layer's weights in memory: the same scores, little memory, resumable."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import RoutingError
from moeify.families.mixture import Mixture
from moeify.progress import Stage, watch_progress
from moeify.pruning.calibration import calibrate
from moeify.pruning.config import PruneConfig
from moeify.pruning.criteria import CRITERIA
from moeify.pruning.evaluation import held_out_losses
from moeify.pruning.opening import open_prunable
from moeify.pruning.prune import prune
from moeify.pruning.scores import LayerScores, Scores, checkpoint_fingerprint
from moeify.routing import memory, passes
from moeify.routing.data import Blocks
from moeify.routing.loading import load_model
from moeify.routing.passes import LayerByLayer, WholeModel
from tests.families.published_models import tiny
from tests.matrix.packing import SIZES, save_packed


def text(rows: int = 6, length: int = 12) -> Blocks:
    lengths = np.full(rows, length)
    lengths[-1] = length - 5
    ids = np.random.default_rng(3).integers(3, 60, (rows, length)).astype(np.int32)
    return Blocks(input_ids=ids, lengths=lengths, domains=None, domain_names=(), documents=rows)


def saved(model_type: str, folder: Path, *, tied: bool = False) -> tuple[PreTrainedModel, Mixture]:
    model = tiny(model_type, tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.tie_weights()
    model.save_pretrained(folder)
    return model, open_prunable(Checkpoint.open(folder))


def fresh(mixture: Mixture) -> Scores:
    layers = {n: LayerScores.empty(mixture.num_experts) for n in mixture.moe_layers}
    fingerprint = checkpoint_fingerprint(mixture)
    return Scores(source="m", fingerprint=fingerprint, data="d", dataset="t", layers=layers)


def by_layer(mixture: Mixture, scratch: Path) -> LayerByLayer:
    return LayerByLayer(mixture.checkpoint.folder, mixture.layout, scratch)


@pytest.mark.parametrize("model_type", ["bert_moe", "gpt2_moe"])
def test_whole_sequences_go_where_they_go_in_the_whole_model(model_type: str, tmp_path: Path) -> None:
    _, mixture = saved(model_type, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"route_by": "sequence"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    whole, layered, path = fresh(mixture), fresh(mixture), tmp_path / "s.json"
    model = load_model(tmp_path / "m")
    calibrate(WholeModel(model), mixture, text(), whole, batch_size=4, save_to=path)
    calibrate(by_layer(mixture, tmp_path / "h"), mixture, text(), layered, batch_size=4, save_to=path)
    for layer, sums in whole.layers.items():
        assert np.array_equal(sums.sums["frequency"], layered.layers[layer].sums["frequency"])
        assert np.allclose(*(CRITERIA["reap"].formula(s.sums) for s in (sums, layered.layers[layer])), rtol=1e-5)


@pytest.mark.parametrize("model_type", ["bert_moe", "gpt2_moe", "qwen3_moe", "deepseek_v3"])
def test_losses_are_those_of_the_whole_model(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        mask_token_id = 1

        def __len__(self) -> int:
            return 60

    monkeypatch.setattr("moeify.pruning.evaluation.tokenizer_for", lambda _: Tokenizer())
    saved(model_type, tmp_path / "m", tied=True)
    losses = [
        held_out_losses(tmp_path / "m", text(), PruneConfig(keep=2, low_memory=low), tmp_path).mean()
        for low in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] > 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_only_one_layer_is_loaded(tmp_path: Path) -> None:
    _, mixture = saved("qwen3_moe", tmp_path / "m")
    runs = by_layer(mixture, tmp_path / "h")
    assert len(runs) == 4
    for place in range(4):
        with runs.opened(place) as step:
            held = {n.split(".")[2] for n, p in step.model.named_parameters() if "layers." in n and not p.is_meta}
            assert held == {str(place)}
            assert step.model.lm_head.weight.is_meta
        assert all(p.is_meta for p in step.model.parameters())


def interrupted(mixture: Mixture, scratch: Path, save_to: Path, after: int) -> Scores:
    """What stays of a calibration that ends after so many batches in all."""

    def stop(stage: Stage) -> None:
        calls.append(stage.done)
        if len(calls) == after + 1:  # the first one says that it begins
            raise KeyboardInterrupt

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt), watch_progress(stop):
        calibrate(by_layer(mixture, scratch), mixture, text(), fresh(mixture), batch_size=2, save_to=save_to)
    return Scores.read(save_to, mixture)


@pytest.mark.parametrize("after", [1, 4, 6, 10])
def test_an_interrupted_calibration_goes_on(after: int, tmp_path: Path) -> None:
    _, mixture = saved("mixtral", tmp_path / "m")
    whole, scratch = fresh(mixture), tmp_path / "h"
    runs = by_layer(mixture, tmp_path / "other")
    calibrate(runs, mixture, text(), whole, batch_size=2, save_to=tmp_path / "w.json")
    kept = interrupted(mixture, scratch, tmp_path / "s.json", after)
    assert kept.batches == after and not kept.complete
    again = by_layer(mixture, scratch)
    assert again.holds(after // 3, 3)
    done: list[int] = []
    with watch_progress(lambda stage: done.append(stage.done)):
        calibrate(again, mixture, text(), kept, batch_size=2, save_to=tmp_path / "s.json")
    assert len(done) == 2 + 12 - after and done[-1] == 4 * 6
    for layer, sums in whole.layers.items():
        for name, row in sums.sums.items():
            assert np.array_equal(row, kept.layers[layer].sums[name])


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Path]:
    import moeify
    from tests.real.checkpoints import demo_gpt2

    moeify.upcycle(demo_gpt2(), tmp_path / "warm", num_experts=6, top_k=2, noise=0.3)
    yield tmp_path / "warm"


def demo_options() -> dict:
    import moeify

    data = Path(moeify.__file__).parent / "demo" / "text.jsonl"
    return {"dataset": str(data), "max_tokens": 4000, "seq_len": 64}


def test_prune_gives_the_same_and_leaves_nothing_behind(warm: Path, tmp_path: Path) -> None:
    whole = prune(warm, tmp_path / "a", keep=3, low_memory=False, **demo_options())
    layered = prune(warm, tmp_path / "b", keep=3, low_memory=True, evaluate=True, **demo_options())
    assert layered.kept == whole.kept and layered.tokens == whole.tokens
    assert layered.layer_by_layer and not whole.layer_by_layer
    for layer, row in whole.scores.items():
        assert np.allclose(row, layered.scores[layer], rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "warm"]


def test_what_an_interruption_leaves_is_used_or_replaced(
    warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    original = LayerByLayer.opened

    def counted(self: LayerByLayer, place: int) -> object:
        opened.append(place)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return original(self, place)

    monkeypatch.setattr(LayerByLayer, "opened", counted)
    options = {"keep": 3, "low_memory": True, **demo_options()}
    with pytest.raises(KeyboardInterrupt):
        prune(warm, tmp_path / "out", **options)
    left = tmp_path / ".out.scores.json.states"
    assert left.is_dir() and (tmp_path / ".out.scores.json").exists()
    prune(warm, tmp_path / "out", **options)
    assert opened == [0, 1, 2, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "warm"]


def test_without_the_states_it_begins_again(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prune(warm, tmp_path / "a", keep=3, low_memory=True, **demo_options())
    scores = tmp_path / "a" / "scores.json"
    document = json.loads(scores.read_text())
    half = document | {"complete": False, "batches": document["batches"] // 2}
    scores.write_text(json.dumps(half))
    again = prune(warm, tmp_path / "b", keep=3, low_memory=True, scores=scores, **demo_options())
    assert again.tokens == whole.tokens and again.scores == whole.scores


def test_it_is_chosen_where_memory_is_short(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(t.nbytes for t in Checkpoint.open(warm).tensors.values())
    for available, layered in ((weights, True), (2 * weights, False), (None, False)):
        monkeypatch.setattr(memory, "available_memory", lambda found=available: found)
        report = prune(warm, tmp_path / str(available), keep=3, **demo_options())
        assert report.layer_by_layer is layered
        assert passes.runs_by_layer(Checkpoint.open(warm), low_memory=not layered) is not layered


def test_it_is_judged_by_what_is_loaded(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, stored = Checkpoint.open(warm), {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for dtype, loaded in stored.items():
        weights = sum(p.numel() for p in load_model(warm, dtype).parameters()) * loaded.itemsize
        assert weights <= memory.loaded_bytes(checkpoint, dtype) <= 1.1 * weights
    half = memory.loaded_bytes(checkpoint, "bfloat16")
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * half)
    assert not passes.runs_by_layer(checkpoint, low_memory=None, dtype="bfloat16")
    assert passes.runs_by_layer(checkpoint, low_memory=None, dtype="float32")
    assert passes.runs_by_layer(checkpoint, checkpoint, low_memory=None, dtype="bfloat16")


def test_memory_is_that_of_the_system_and_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert memory.available_memory() == 4000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("800000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    assert memory.available_memory() == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 4000 * 1024


def test_what_cannot_run_by_layer_is_said() -> None:
    with pytest.raises(RoutingError, match="a Linear gives more than hidden states"):
        passes._hidden(torch.nn.Linear(1, 1), (torch.ones(1), None), 0)


@pytest.mark.parametrize(("model_type", "method"), [("gpt_oss", "mxfp4"), ("deepseek_v3", "fp8")])
def test_quantised_layers_are_unpacked_one_by_one(model_type: str, method: str, tmp_path: Path) -> None:
    model = tiny(model_type, tied=False, **SIZES.get(method, {}))
    save_packed(model.to(torch.bfloat16), tmp_path / "m", method)
    checkpoint = Checkpoint.open(tmp_path / "m")
    mixture = open_prunable(checkpoint)
    whole, layered, path = fresh(mixture), fresh(mixture), tmp_path / "s.json"
    held = WholeModel(load_model(tmp_path / "m"))
    calibrate(held, mixture, text(), whole, batch_size=4, save_to=path)
    calibrate(by_layer(mixture, tmp_path / "h"), mixture, text(), layered, batch_size=4, save_to=path)
    for layer, sums in whole.layers.items():
        assert np.array_equal(sums.sums["frequency"], layered.layers[layer].sums["frequency"])
    loaded = sum(parameter.nbytes for parameter in held.model.parameters())
    assert loaded <= memory.loaded_bytes(checkpoint) <= 1.3 * loaded


PEAK = """
import resource, sys
from pathlib import Path
import torch, transformers
from moeify.checkpoint.reader import Checkpoint
from moeify.pruning.opening import open_prunable
from tests.pruning.test_low_memory import by_layer, calibrate, fresh, text
torch.set_num_threads(1)
mixture = open_prunable(Checkpoint.open(Path(sys.argv[1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
runs = by_layer(mixture, Path(sys.argv[2]))
calibrate(runs, mixture, text(), fresh(mixture), batch_size=2, save_to=Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_that_of_one_layer(tmp_path: Path) -> None:
    """12 layers of 24 MB each: a pass takes a few layers' room, not the model's."""
    model = tiny(
        "qwen3_moe",
        tied=False,
        hidden_size=256,
        moe_intermediate_size=512,
        num_hidden_layers=12,
        mlp_only_layers=[],
        num_experts=32,
    )
    model.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    del model
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "m", tmp_path / "h", tmp_path / "s.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert size > 280 << 20 and int(done.stdout) << 10 < size / 2
