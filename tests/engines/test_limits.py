"""Where a card says that an engine does not run a checkpoint, the engine does not.

Both engines ignore norm_topk_prob for Qwen2-MoE, and refuse tied embeddings. llama.cpp's converter
refuses dense layers beside mixtures; mlx-lm runs a Qwen3-MoE that has them.
"""

import json
from pathlib import Path

import pytest

import moeify
from moeify.families.registry import origin

from .models import dense, greedy, untied
from .processes import conversion, converted, started, tokens

pytestmark = pytest.mark.engines


def verdicts(moe: Path) -> dict[str, str]:
    """What the card of a checkpoint says of each engine."""
    config = json.loads((moe / "config.json").read_text())
    return {engine.name: engine.says(config) for engine in origin(config).engines}


@pytest.mark.parametrize("tied", [True, False])
def test_the_usual_form_of_qwen2_is_wrong_in_both(tied, tmp_path):
    source = dense(tmp_path / "dense", "qwen2")
    source = source if tied else untied(source, tmp_path / "untied")
    moeify.upcycle(source, tmp_path / "moe", num_experts=4, noise=0.0)
    said = verdicts(tmp_path / "moe")
    assert said["llama.cpp"].startswith("no: it ignores norm_topk_prob")
    assert said["mlx-lm"].startswith("no: it ignores norm_topk_prob")
    llama = started("llama_cpp", converted(tmp_path / "moe", tmp_path / "moe.gguf"))
    mlx = started("mlx", tmp_path / "moe")
    if tied:
        assert llama.returncode != 0 and "output.weight" in llama.stderr
        assert mlx.returncode != 0 and "lm_head.weight" in mlx.stderr
    else:
        wanted = greedy(source)
        assert json.loads(llama.stdout.splitlines()[-1]) != wanted
        assert json.loads(mlx.stdout.splitlines()[-1]) != wanted


def test_dense_layers_beside_mixtures(tmp_path):
    source = dense(tmp_path / "dense", "qwen3")
    moeify.upcycle(source, tmp_path / "moe", num_experts=4, noise=0.0, layers="odd")
    said = verdicts(tmp_path / "moe")
    assert said["llama.cpp"].startswith("no: its converter")
    refused = conversion(tmp_path / "moe", tmp_path / "moe.gguf")
    assert refused.returncode != 0
    assert "Can not map tensor 'model.layers.0.mlp." in refused.stderr
    assert said["mlx-lm"] == "yes"
    assert tokens("mlx", tmp_path / "moe") == greedy(source)
