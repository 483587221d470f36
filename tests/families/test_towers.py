"""Models that see: their towers are carried, and what they see gives the dense model's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import moeify
from moeify.routing.loading import load_model
from tests.families.edited import edit_config, edit_tensors, read_config
from tests.families.published_models import tiny
from tests.families.test_contract import load_strictly
from tests.tiny import save_tiny, state, tolerance


def picture(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """A picture between tokens, as the processor of the family gives it to the class."""
    config = transformers.AutoConfig.from_pretrained(folder)
    vision, draw = config.vision_config, torch.Generator().manual_seed(3)
    if "+" in family:
        count = (vision.image_size // vision.patch_size // getattr(config, "spatial_merge_size", 1)) ** 2
        pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=draw)
        ids = torch.tensor([[5, 9, *[config.image_token_id] * count, 7, 11, 13]])
        sizes = {"image_sizes": torch.tensor([[vision.image_size] * 2])} if family.startswith("mistral3") else {}
        return {"input_ids": ids, "pixel_values": pixels, **sizes}
    patches = 4 * vision.spatial_merge_size**2
    pixels = torch.randn(patches, 3 * vision.temporal_patch_size * vision.patch_size**2, generator=draw)
    seen = [config.vision_start_token_id, *[config.image_token_id] * 4, config.vision_end_token_id]
    ids = torch.tensor([[5, 9, *seen, 7, 11, 13]])
    side = vision.spatial_merge_size * 2
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
    }


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_vl", "llava+llama", "llava+mistral", "mistral3+mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_picture_gives_the_dense_models_logits(tmp_path: Path, family: str, tied: bool) -> None:
    dense = save_tiny(tmp_path / "dense", family, tie_word_embeddings=tied)
    assert "towers" in moeify.inspect(dense).parts
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0)
    model, batch = load_strictly(tmp_path / "moe"), picture(family, dense)
    blind = model(input_ids=batch["input_ids"]).logits
    wanted, found = load_model(dense)(**batch).logits, model(**batch).logits
    assert (wanted - found).abs().max() <= tolerance(family) * wanted.abs().max()
    assert (found - blind).abs().max() > 0.01
    said = moeify.inspect(tmp_path / "moe")
    assert said.problems == [] and said.params_total == model.num_parameters() and "towers" in said.parts
    load_model(dense).save_pretrained(tmp_path / "held", save_original_format=False)
    moeify.upcycle(tmp_path / "held", tmp_path / "again", num_experts=4, noise=0.0)
    assert torch.equal(load_strictly(tmp_path / "again")(**batch).logits, found)


def test_experts_that_files_hold_turned_round_are_those_of_the_class(tmp_path: Path) -> None:
    """Qwen publishes them so, transformers may hold them otherwise, and shapes tell which is which."""
    model = tiny("qwen3_vl_moe", tied=False, moe_intermediate_size=12)
    for form in ("published", "held"):
        model.save_pretrained(tmp_path / form)
    edit_tensors(
        tmp_path / "published",
        lambda tensors: {
            name: tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor
            for name, tensor in tensors.items()
        },
    )
    for form in ("published", "held"):
        assert moeify.inspect(tmp_path / form).problems == []
        moeify.prune(tmp_path / form, tmp_path / f"{form}-pruned", keep=2, by="aimer")
    pruned = [load_strictly(tmp_path / f"{form}-pruned").state_dict() for form in ("published", "held")]
    assert all(torch.equal(tensor, pruned[1][key]) for key, tensor in pruned[0].items())


@pytest.mark.parametrize("width", [48, 32, 16])
def test_experts_are_written_as_qwen_publishes_them(tmp_path: Path, width: int) -> None:
    """Turned round, noise and redrawn neurons too; square matrices as transformers holds them, which cannot tell."""
    dense = save_tiny(tmp_path / "dense", "qwen3_vl", intermediate_size=width)
    options = {"num_experts": 3, "reinit": 0.5} if width == 48 else {"num_experts": 3, "noise": 0.05}
    moeify.upcycle(dense, tmp_path / "moe", **options)
    stored, turned = state(tmp_path / "moe"), width == 48
    experts = {name: stored[f"model.language_model.layers.1.mlp.experts.{name}_proj"] for name in ("gate_up", "down")}
    assert experts["gate_up"].shape == ((3, 32, 2 * width) if turned else (3, 2 * width, 32))
    loaded = load_strictly(tmp_path / "moe").state_dict()
    for name, tensor in experts.items():
        held = loaded[f"model.language_model.layers.1.mlp.experts.{name}_proj"]
        assert torch.equal(held, tensor.transpose(1, 2) if turned else tensor)
    up = state(dense)["model.language_model.layers.1.mlp.up_proj.weight"]
    held = loaded["model.language_model.layers.1.mlp.experts.gate_up_proj"][:, width:]
    if turned:  # whole neurons are as they were, or drawn anew
        same = (held == up).all(dim=-1)
        assert (same.sum(dim=-1) == width // 2).all() and not torch.equal(same[0], same[1])
        other = (held != up).all(dim=-1)
        assert torch.equal(same, ~other)
    else:
        assert ((held - up).std(dim=(1, 2)) / up.std() - 0.05).abs().max() < 0.01


def test_experts_turned_round_come_apart_again_and_grow(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3_vl")
    other = save_tiny(tmp_path / "other", "qwen3_vl")
    edit_tensors(other, lambda tensors: {name: tensor * -0.5 for name, tensor in tensors.items()})
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    figures = moeify.inspect(tmp_path / "moe", weights=True, reference=str(dense)).layers[0].weights
    assert figures is not None and figures["dense_distance"]["max"] == 0.0 and figures["duplicates"] == [[0, 1]]
    moeify.add_experts(tmp_path / "moe", tmp_path / "more", experts=(str(other),))
    moeify.extract(tmp_path / "more", tmp_path / "newest", expert=2)
    moeify.extract(tmp_path / "more", tmp_path / "mean", expert=(0, 2))
    one, two, newest, mean = (state(tmp_path / name) for name in ("dense", "other", "newest", "mean"))
    ffn = [name for name in one if ".mlp." in name and "language_model" in name]
    assert len(ffn) == 12 and all(torch.equal(newest[name], two[name]) for name in ffn)
    assert all(torch.allclose(mean[name], (one[name] + two[name]) / 2, atol=1e-6) for name in ffn)


MTP = {
    "mtp.fc.weight": (32, 64),
    "mtp.norm.weight": (32,),
    "mtp.layers.0.mlp.gate_proj.weight": (48, 32),
    "mtp.layers.0.mlp.up_proj.weight": (48, 32),
    "mtp.layers.0.mlp.down_proj.weight": (32, 48),
}


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_text"])
def test_layers_for_further_tokens_are_named_and_carried_there_and_back(tmp_path: Path, family: str) -> None:
    """As published: with such layers, every fourth layer's attention whole, and no list of kinds."""
    every = {"num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    dense = save_tiny(tmp_path / "dense", family, **every)
    edit_tensors(dense, lambda tensors: tensors | {name: torch.rand(shape) for name, shape in MTP.items()})
    more: dict[str, Any] = {"full_attention_interval": 4, "mtp_num_hidden_layers": 1}
    text = read_config(dense).get("text_config", read_config(dense)) | more
    text = {key: value for key, value in text.items() if key != "layer_types"}
    edit_config(dense, **({"text_config": text} if family == "qwen3_5" else text | {"layer_types": ...}))
    said = moeify.inspect(dense)
    assert said.problems == [] and said.params_total == load_model(dense).num_parameters()
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    assert any("mtp.fc.weight" in warning for warning in report.warnings)
    assert report.params_total == load_strictly(tmp_path / "moe").num_parameters()
    assert moeify.inspect(tmp_path / "moe").problems == []
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= tolerance(family)
    stored = state(tmp_path / "moe")
    prefix = "model.language_model." if family == "qwen3_5" else "model."
    assert stored[f"{prefix}layers.0.mlp.experts.gate_up_proj"].shape == (2, 96, 32)
    assert not stored[f"{prefix}layers.0.mlp.shared_expert.down_proj.weight"].any()
    moeify.prune(tmp_path / "moe", tmp_path / "back", keep=1, by="random", dense=True)
    before, after = state(dense), state(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    one, two = (read_config(folder).get("text_config", read_config(folder)) for folder in (dense, tmp_path / "back"))
    assert two["mtp_num_hidden_layers"] == 1
    assert {key for key, value in one.items() if key != "architectures" and two[key] != value} == set()
