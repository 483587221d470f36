"""Where a card says that an engine does not run a checkpoint, the engine does not.

Both engines refuse Qwen2-MoE in the default form, with tied embeddings or without, for want of a
shared expert. llama.cpp's converter refuses dense layers beside mixtures; mlx-lm runs a Qwen3-MoE
that has them.
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
def test_both_refuse_the_default_form_of_qwen2(tied, tmp_path):
    source = dense(tmp_path / "dense", "qwen2")
    source = source if tied else untied(source, tmp_path / "untied")
    moeify.upcycle(source, tmp_path / "moe", num_experts=4, noise=0.0)
    said = verdicts(tmp_path / "moe")
    assert said["llama.cpp"].startswith("no: it wants an untied lm_head and a shared expert")
    assert said["mlx-lm"] == said["llama.cpp"]
    llama = started("llama_cpp", converted(tmp_path / "moe", tmp_path / "moe.gguf"))
    assert llama.returncode != 0
    assert ("shexp" in llama.stderr) or ("output.weight" in llama.stderr)
    mlx = started("mlx", tmp_path / "moe")
    assert mlx.returncode != 0
    assert "shared_expert" in mlx.stderr


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
