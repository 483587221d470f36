"""What layouts and conversions can say beyond Llama's: joined tensors, extras, kinds, towers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moeify
from moeify.families import registry
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.moe_layout import ExtraTensor
from moeify.families.registry import register_conversion
from moeify.families.values import Config
from tests.extending.decoders import weights
from tests.families.test_contract import load_strictly
from tests.tiny import save_tiny


def _to_glm4(config: Config, settings: MoeSettings) -> Config:
    return {
        **config,
        "head_dim": config["head_dim"],
        "partial_rotary_factor": 1.0,
        "use_qk_norm": True,
        "moe_intermediate_size": config["intermediate_size"],
        "first_k_dense_replace": 0,
        "n_routed_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "routed_scaling_factor": 0.75,
        "norm_topk_prob": True,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extras_are_weighted_copies_and_constants_with_a_dtype_of_their_own(
    clean: None, tmp_path: Path, dtype: str
) -> None:
    """A quarter of the output is the shared expert's, three quarters are the routed ones'."""
    qwen3, glm4 = registry.DENSE_LAYOUTS["qwen3"], registry.MOE_LAYOUTS["glm4_moe"]
    shared = "mlp.shared_experts.{}_proj.weight"
    registry.CONVERSIONS["qwen3"] = registry.CONVERSIONS["qwen3"][:1]  # the one to glm4_moe has other extras
    register_conversion(
        Conversion(
            dense=qwen3,
            moe=glm4,
            to_moe=_to_glm4,
            to_dense=dict,
            extras=(
                ExtraTensor(name=shared.format("gate"), shape=("F", "H"), role="gate"),
                ExtraTensor(name=shared.format("up"), shape=("F", "H"), role="up"),
                ExtraTensor(name=shared.format("down"), shape=("H", "F"), role="down", weight=0.25),
                ExtraTensor(name="mlp.gate.e_score_correction_bias", shape=(4,), mean=1.0, dtype="F32"),
            ),
        )
    )
    dense, moe = save_tiny(tmp_path / "dense", "qwen3", dtype=dtype), tmp_path / "moe"
    report = moeify.upcycle(dense, moe, num_experts=4, noise=0.0, arch="glm4_moe")
    model = load_strictly(moe)
    assert report.params_total == sum(p.numel() for p in model.parameters())
    bias = weights(moe)["model.layers.0.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32 and bias.eq(1).all()
    down = weights(dense)["model.layers.0.mlp.down_proj.weight"]
    copied = weights(moe)["model.layers.0.mlp.shared_experts.down_proj.weight"]
    assert copied.dtype == down.dtype and torch.equal(copied, down * 0.25)
    assert moeify.inspect(moe).problems == []
    assert moeify.verify(dense, moe).relative_diff <= (1e-6 if dtype == "float32" else 2e-2)
