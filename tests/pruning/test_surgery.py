"""Cut checkpoints: what is left is byte for byte what was there, and computes what it must."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.checkpoint.reader import Checkpoint
from moeify.pruning.opening import open_prunable
from moeify.pruning.plan import plan_prune
from moeify.pruning.prune import prune
from moeify.routing.loading import model_class
from tests.pruning.tiny_mixtures import EXPERTS, REQUIRED, save


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def expected(source: dict[str, torch.Tensor], kept: dict[int, tuple[int, ...]]) -> dict[str, str]:
    """Names and hashes of the pruned tensors, worked out from names alone."""
    result = {}
    for name, tensor in source.items():
        layer = re.search(r"(?:layers|layer|h)\.(\d+)\.", name)
        number = re.search(r"\.experts\.(\d+)\.", name)
        chosen = kept.get(int(layer[1])) if layer else None
        shared = "shared_expert" in name or "_proj.weight" in name
        if chosen is None:
            pass
        elif number:
            if int(number[1]) not in chosen:
                continue
            place = chosen.index(int(number[1]))
            name = name.replace(number[0], f".experts.{place}.")
        elif re.search(r"experts?[._]|router|\.gate\.|_linear\.|correction_bias", name) and (
            EXPERTS in tensor.shape and not shared
        ):
            tensor = tensor.index_select(tensor.shape.index(EXPERTS), torch.tensor(chosen))
        result[name] = digest(tensor)
    return result


@pytest.mark.parametrize("model_type", REQUIRED)
def test_kept_bytes_are_the_same_and_nothing_is_missing(model_type: str, tmp_path: Path) -> None:
    save(model_type, tmp_path / "moe")
    report = prune(tmp_path / "moe", tmp_path / "out", ratio=0.5, by="random")
    found = {name: digest(tensor) for name, tensor in weights(tmp_path / "out").items()}
    assert found == expected(weights(tmp_path / "moe"), report.kept)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tmp_path / "out")
    _, info = model_class(config).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("model_type", ["bert_moe", "mixtral", "gpt_oss", "deepseek_v3"])
def test_a_plan_that_keeps_all_copies_everything(model_type: str, tmp_path: Path) -> None:
    save(model_type, tmp_path)
    mixture = open_prunable(Checkpoint.open(tmp_path))
    kept = dict.fromkeys(mixture.moe_layers, tuple(range(EXPERTS)))
    plan = plan_prune(mixture, kept, 10**9)
    jobs = {job.name: job for shard in plan.files.shards for job in shard.jobs}
    assert jobs.keys() == mixture.checkpoint.tensors.keys()
    for name, job in jobs.items():
        (piece,) = job.pieces
        (stored,) = piece.sources()
        assert stored.name == name and stored.shape == job.shape and piece.nbytes == stored.nbytes
    assert plan.config == mixture.config
    assert plan.params_before == plan.params_after


def test_config_numbers_agree_under_every_key(tmp_path: Path) -> None:
    save("qwen3_moe", tmp_path / "moe")
    path = tmp_path / "moe" / "config.json"
    config = json.loads(path.read_text())
    config |= {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "auto_map": {"AutoModel": "x.Y"}}
    config["quantization_config"] = {
        "ignore": ["model.layers.0.mlp.experts.1.up_proj", "model.layers.0.mlp.experts.7.up_proj"]
    }
    path.write_text(json.dumps(config))
    prune(tmp_path / "moe", tmp_path / "out", drop="all:0,1,2")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["num_experts"] == written["num_local_experts"] == 5
    assert written["quantization_config"]["ignore"] == ["model.layers.0.mlp.experts.4.up_proj"]
    assert "auto_map" not in written or set(written["auto_map"]) > {"AutoModel"}


def test_quantised_side_tensors_are_cut_alike(tmp_path: Path) -> None:
    save("gpt_oss", tmp_path / "moe")
    source = weights(tmp_path / "moe")
    for name in [n for n in source if n.endswith("experts.gate_up_proj")]:
        del source[name]
        source[name + "_blocks"] = torch.randint(0, 255, (EXPERTS, 24, 2, 4), dtype=torch.uint8)
        source[name + "_scales"] = torch.randint(0, 255, (EXPERTS, 24, 2), dtype=torch.uint8)
    save_file(source, tmp_path / "moe" / "model.safetensors")
    report = prune(tmp_path / "moe", tmp_path / "out", keep=3, by="random")
    after = weights(tmp_path / "out")
    for layer, kept in report.kept.items():
        for ending in ("_blocks", "_scales", "_bias"):
            name = f"model.layers.{layer}.mlp.experts.gate_up_proj{ending}"
            assert torch.equal(after[name], source[name][list(kept)])


def test_single_experts_take_their_side_tensors_along(tmp_path: Path) -> None:
    save("qwen3_moe", tmp_path / "moe")
    source = weights(tmp_path / "moe")
    for expert in range(EXPERTS):
        name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight_scale_inv"
        source[name] = torch.full((1, 1), float(expert))
    save_file(source, tmp_path / "moe" / "model.safetensors")
    report = prune(tmp_path / "moe", tmp_path / "out", keep=3, by="random")
    after = weights(tmp_path / "out")
    scales = [after[f"model.layers.1.mlp.experts.{n}.up_proj.weight_scale_inv"].item() for n in range(3)]
    assert tuple(scales) == report.kept[1]


def test_record_counts_experts_as_they_were_before_any_pruning(tmp_path: Path) -> None:
    save("mixtral", tmp_path / "moe")
    first = prune(tmp_path / "moe", tmp_path / "five", drop="all:0,3,4")
    second = prune(tmp_path / "five", tmp_path / "three", drop="all:1,2")
    assert first.kept[0] == (1, 2, 5, 6, 7) and second.kept[0] == (0, 3, 4)
    steps = json.loads((tmp_path / "three" / "moeify.json").read_text())["steps"]
    assert steps[-1]["results"]["original_experts"]["0"] == [1, 6, 7]
    assert steps[0]["results"]["kept"]["1"] == [1, 2, 5, 6, 7]


def test_groups_stay_equally_large(tmp_path: Path) -> None:
    save("glm4_moe", tmp_path / "moe")
    report = prune(tmp_path / "moe", tmp_path / "out", keep=4, by="random", seed=1)
    for kept in report.kept.values():
        assert sum(expert < EXPERTS // 2 for expert in kept) == 2


def test_other_files_come_along_and_code_does_not(tmp_path: Path) -> None:
    save("olmoe", tmp_path / "moe")
    (tmp_path / "moe" / "tokenizer.json").write_text("{}")
    (tmp_path / "moe" / "evil.py").write_text("raise SystemExit")
    (tmp_path / "moe" / "README.md").write_text("---\nlicense: apache-2.0\n---\nhello")
    prune(tmp_path / "moe", tmp_path / "out", keep=4, by="random")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "moeify.json", "README.md"} <= names
    assert "evil.py" not in names
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text()
