"""The transformers before 5 loads what moeify writes, nothing missing or left over, and computes the same."""

from pathlib import Path

import pytest
import torch

import moeify
from moeify.families.registry import CONVERSIONS
from moeify.routing.loading import load_model
from tests.families.edited import edit_tensors
from tests.families.published_models import tiny
from tests.tiny import save_tiny

from .processes import in_transformers4

pytestmark = pytest.mark.transformers4

TOKENS = [[5, 9, 17, 33, 2, 40, 3, 12], [8, 7, 6, 11, 22, 33, 44, 55]]
NATIVE = [name for name, known in CONVERSIONS.items() if not known[0].remote_code]
NEWER = {"cohere2", "lfm2", "qwen3_5", "qwen3_5_text"}
"""Types whose mixtures came with transformers 5."""
PRUNED = ("mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "olmoe", "glm4_moe", "deepseek_v3")
OWN = ("gpt2", "llama")


def _as_published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers 5 saves CLIP's tower under names that the one before does not read."""
    return {name.replace("vision_tower.", "vision_tower.vision_model.", 1): t for name, t in tensors.items()}


@torch.no_grad()
def test_what_is_written_loads_and_computes_as_in_transformers_5(tmp_path: Path) -> None:
    made = [*((family, family, None) for family in NATIVE), *((family, f"own-{family}", "own") for family in OWN)]
    for family, name, arch in made:
        dense = save_tiny(tmp_path / "dense" / name, family)
        if family.startswith("llava"):
            edit_tensors(dense, _as_published)
        moeify.upcycle(dense, tmp_path / name, num_experts=4, noise=0.3, arch=arch)
    for model_type in PRUNED:
        one_group = {"n_group": 1, "topk_group": 1} if model_type in ("glm4_moe", "deepseek_v3") else {}
        tiny(model_type, tied=False, **one_group).save_pretrained(tmp_path / "whole" / model_type)
        moeify.prune(tmp_path / "whole" / model_type, tmp_path / f"pruned-{model_type}", keep=2, by="random")
    names = [path.name for path in sorted(tmp_path.iterdir()) if path.name not in ("dense", "whole")]
    folders = {str(tmp_path / name): name.startswith("own-") for name in names}
    said = in_transformers4({"folders": folders, "tokens": TOKENS})
    assert said["version"].startswith("4.57.")
    found = {Path(folder).name: one for folder, one in said["found"].items()}
    assert {name for name, one in found.items() if not one} == NEWER
    for name, one in found.items():
        if name.startswith("own-"):
            assert "needs transformers 5 or newer, and 4.57." in one["wrong"]
        elif one:
            assert not one["wrong"], f"{name}: {one['wrong']}"
            wanted = load_model(tmp_path / name)(input_ids=torch.tensor(TOKENS)).logits
            close = (wanted - torch.tensor(one["logits"])).abs().max() <= 1e-5 * wanted.abs().max()
            assert close, f"{name} computes something else"
