"""What cannot work is said in one sentence, before anything is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.errors import (
    CheckpointError,
    ConfigError,
    MoeifyError,
    OutputError,
    TensorNotFoundError,
    UnsupportedModelError,
)
from moeify.pruning.config import PruneConfig, parse_experts
from moeify.pruning.prune import prune
from tests.pruning.tiny_mixtures import EXPERTS, save

OPTIONS = [
    ({}, "exactly one of --keep, --ratio and --drop"),
    ({"keep": 2, "ratio": 0.5}, "exactly one of --keep, --ratio and --drop"),
    ({"keep": 0}, "at least one expert must stay"),
    ({"ratio": 1.0}, "between 0 and 1, not 1"),
    ({"ratio": float("nan")}, "between 0 and 1, not nan"),
    ({"keep": 2, "by": "magic"}, "by 'magic' is unknown"),
    ({"keep": 2, "by": "reap"}, "reap needs text"),
    ({"keep": 2, "by": "aimer", "evaluate": True}, "--eval needs text"),
    ({"keep": 2, "by": "aimer", "rescale": True}, "--rescale needs the weights"),
    ({"keep": 2, "by": "aimer", "dense": True}, "one feed-forward network a layer, not 2"),
    ({"keep": 1, "by": "aimer", "dense": True, "merge": True}, "--merge has no meaning"),
    ({"keep": 2, "by": "random", "seed": -1}, "seed must lie"),
    ({"keep": 2, "by": "random", "batch": 0}, "batch must be positive"),
    ({"drop": "0:1;0:2"}, "names something twice"),
    ({"drop": "0:1,1"}, "names something twice"),
    ({"drop": "one:two"}, "'one:two' is not understood"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PruneConfig(**options)
    assert caught.value.hint


def test_the_criterion_follows_from_what_there_is() -> None:
    assert PruneConfig(keep=2).criterion == "aimer"
    assert PruneConfig(keep=2, dataset="x.txt").criterion == "reap"
    assert PruneConfig(keep=2, scores=Path("s.json")).criterion == "reap"
    assert PruneConfig(keep=2, dataset="x.txt", by="random").criterion == "random"


def test_experts_by_hand() -> None:
    assert parse_experts("0:5,1; 3:2") == {0: (1, 5), 3: (2,)}
    assert parse_experts("all:7") == {None: (7,)}


CHECKPOINTS = [
    ("mixtral", {"keep": EXPERTS}, "nothing to do: keep 8 of 8"),
    ("mixtral", {"keep": 9}, "nothing to do: keep 9 of 8"),
    ("mixtral", {"keep": 1}, "each token visits 2 experts"),
    ("mixtral", {"ratio": 0.9}, "--ratio 0.9 would keep 1"),
    ("mixtral", {"ratio": 0.01}, "nothing to do"),
    ("mixtral", {"drop": "0:1;1:2,3"}, "layer 0 would keep 7 experts and layer 1 6"),
    ("mixtral", {"drop": "0:1"}, "one number for all layers"),
    ("mixtral", {"drop": "0:1;7:2"}, "layer 7 is no mixture: the MoE layers are 0-1"),
    ("mixtral", {"drop": "all:8"}, "layer 0 has experts 0 to 7, not 8"),
    ("mixtral", {"drop": "all:0,1,2,3,4,5,6"}, "each token visits 2"),
    ("bert_moe", {"drop": "1:0"}, "layer 1 is no mixture: the MoE layers are 0, 2"),
    ("deepseek_v3", {"keep": 3}, "a multiple of 2"),
    ("deepseek_v3", {"keep": 2}, "at least 2 experts a group"),
    ("glm4_moe", {"drop": "all:0,1"}, r"\[2, 4\] experts in its 2 groups"),
    ("qwen3_moe", {"keep": 4, "max_shard_size": "lots"}, "'lots' is no size"),
]


@pytest.mark.parametrize(("model_type", "options", "message"), CHECKPOINTS)
def test_checkpoints(model_type: str, options: dict, message: str, tmp_path: Path) -> None:
    save(model_type, tmp_path / "moe")
    with pytest.raises(ConfigError, match=message) as caught:
        prune(tmp_path / "moe", tmp_path / "out", by="random", **options)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


def refused(folder: Path, kind: type[MoeifyError], message: str) -> None:
    with pytest.raises(kind, match=message):
        prune(folder, folder.parent / "out", keep=4, by="aimer")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_dense_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UnsupportedModelError) as caught:
        prune(tmp_path / "m", tmp_path / "out", keep=4, by="aimer")
    assert "dense checkpoint" in str(caught.value.hint)


def test_unknown_model_type(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path / "m", UnsupportedModelError, "llama")


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def test_missing_expert(tmp_path: Path) -> None:
    save("qwen3_moe", tmp_path / "m")
    gone = [f"model.layers.1.mlp.experts.7.{part}_proj.weight" for part in ("gate", "up", "down")]
    rewrite(tmp_path / "m", dict.fromkeys(gone))
    refused(tmp_path / "m", CheckpointError, "layer 1 holds 7 experts, config.json says 8")


def test_missing_router(tmp_path: Path) -> None:
    save("qwen3_moe", tmp_path / "m")
    rewrite(tmp_path / "m", {"model.layers.1.mlp.gate.weight": None})
    refused(tmp_path / "m", TensorNotFoundError, r"layers\.1\.mlp\.gate\.weight")


def test_a_tensor_that_cannot_be_cut(tmp_path: Path) -> None:
    save("bert_moe", tmp_path / "m")
    name = "bert.encoder.layer.0.intermediate.experts.up_proj"
    rewrite(tmp_path / "m", {name: torch.zeros(7, 24, 16)})
    refused(tmp_path / "m", CheckpointError, "does not count 8 experts")


def test_nan_weights_have_no_score(tmp_path: Path) -> None:
    save("bert_moe", tmp_path / "m")
    name = "bert.encoder.layer.0.intermediate.experts.up_proj"
    rewrite(tmp_path / "m", {name: torch.full((8, 24, 16), torch.nan)})
    refused(tmp_path / "m", CheckpointError, "NaN")


def test_quantised_weights_have_no_aimer_score(tmp_path: Path) -> None:
    save("bert_moe", tmp_path / "m")
    name = "bert.encoder.layer.0.intermediate.experts.up_proj"
    rewrite(tmp_path / "m", {name: torch.zeros(8, 24, 16, dtype=torch.int8)})
    refused(tmp_path / "m", CheckpointError, "quantised")


def test_hash_routing(tmp_path: Path) -> None:
    save("deepseek_v3", tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hash_layers": 3}))
    refused(tmp_path / "m", CheckpointError, "routes by a hash")


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    save("olmoe", tmp_path / "moe")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        prune(tmp_path / "moe", tmp_path / "out", keep=4, by="random")
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    prune(tmp_path / "moe", tmp_path / "out", keep=4, by="random", force=True)
    assert not (tmp_path / "out" / "mine").exists()
