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
    """Qwen publishes them so; what moeify writes is as transformers holds them, and shapes tell which is which."""
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
