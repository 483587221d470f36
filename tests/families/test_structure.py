"""Every tensor that a class loads is missed when it is gone or of another shape."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import moeify
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError
from moeify.families.joining import whole_name
from moeify.families.registry import CONVERSIONS, DENSE_LAYOUTS, MOE_LAYOUTS, conversions_to
from moeify.families.structure import check_structure, structure_problems
from tests.tiny import HEADS, LM_HEADS, layers_of, save_tiny


@pytest.fixture(scope="module", params=[*CONVERSIONS, *(f"{name} classifier" for name in LM_HEADS)])
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    """A dense checkpoint, the mixture of some of its layers, and one whose layers all are."""
    family, _, head = request.param.partition(" ")
    folder = tmp_path_factory.mktemp(family)
    classifier = next((name for name in HEADS[family] if name.endswith("Classification")), None)
    save_tiny(folder / "dense", family, classifier if head else None)
    made = dict.fromkeys(("all", layers_of(folder / "dense", "odd")))
    for layers in made:
        moeify.upcycle(folder / "dense", folder / layers, num_experts=2, layers=layers)
    return [Checkpoint.open(folder / name) for name in ("dense", *made)]


def test_a_whole_checkpoint_has_no_problems(checkpoints: list[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        assert structure_problems(checkpoint.tensors, checkpoint.config) == []


def test_each_tensor_that_is_gone_is_missed(checkpoints: list[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        for name, stored in _one_of_each(checkpoint):
            rest = {n: t for n, t in checkpoint.tensors.items() if n != name}
            problems = structure_problems(rest, checkpoint.config)
            free = _may_lack(name) or _is_guard(stored)
            assert problems or free, f"{checkpoint.folder.name}: {name}"


def test_each_tensor_of_another_shape_is_noticed(checkpoints: list[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        for name, stored in _one_of_each(checkpoint):
            other = replace(stored, shape=(*stored.shape[:-1], stored.shape[-1] + 1))
            problems = structure_problems({**checkpoint.tensors, name: other}, checkpoint.config)
            assert problems or _is_free(checkpoint, name), f"{checkpoint.folder.name}: {name}"


def _one_of_each(checkpoint: Checkpoint) -> list[tuple[str, StoredTensor]]:
    """The last of the tensors whose names differ by numbers alone."""
    found = {re.sub(r"\d+", "N", name): (name, stored) for name, stored in checkpoint.tensors.items()}
    return list(found.values())


def _may_lack(name: str) -> bool:
    """Tied tensors, those that a class makes up itself, such as BERT's unused pooler, and towers."""
    if _in_tower(name):
        return True
    return name.endswith(("lm_head.weight", "decoder.weight", "decoder.bias")) or ".pooler." in name


def _in_tower(name: str) -> bool:
    return any(name.startswith(layout.towers) for layout in DENSE_LAYOUTS.values())


def _is_guard(stored: StoredTensor) -> bool:
    """What stops dense classes is missing from mixtures that were made before it."""
    return any(layout.is_guard(stored) for layout in MOE_LAYOUTS.values())


def _is_free(checkpoint: Checkpoint, name: str) -> bool:
    """The FFN of a layer that is no mixture may have another width, and so may a shared expert."""
    if checkpoint.folder.name != "odd" or ".shared_" in name or _in_tower(name):
        return ".shared_" in name or _in_tower(name)
    (conversion,) = conversions_to(checkpoint.config["model_type"])
    dense, moe = conversion.dense, conversion.moe
    layers = [dense.layer.format(layer=layer) for layer in (0, 2)]
    return name.endswith(tuple(n + (whole_name(p.name, moe.joined) or p.name) for n in layers for p in dense.ffn))


def test_check_names_the_tensor_and_the_way_to_look(checkpoints: list[Checkpoint]) -> None:
    checkpoint = checkpoints[1]
    norm = next(name for name in checkpoint.tensors if "norm" in name.lower() or "ln_1" in name)
    rest = {n: t for n, t in checkpoint.tensors.items() if n != norm}
    with pytest.raises(CheckpointError, match="the output would not load") as caught:
        check_structure(rest, checkpoint.config, "the output")
    assert "moeify inspect" in str(caught.value.hint)


def test_a_source_that_lacks_a_tensor_is_refused_before_it_is_pruned(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path / "dense", "qwen3")
    moeify.upcycle(tmp_path / "dense", tmp_path / "moe", num_experts=4)
    index = tmp_path / "moe" / "model.safetensors.index.json"
    shard = tmp_path / "moe" / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    for layer in range(4):
        del tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]
    save_file(tensors, shard)
    text = index.read_text().splitlines()
    index.write_text("\n".join(line for line in text if "q_proj.weight" not in line))
    with pytest.raises(CheckpointError, match="q_proj"):
        moeify.prune(tmp_path / "moe", tmp_path / "out", keep=2, by="random")
    assert not (tmp_path / "out").exists()
