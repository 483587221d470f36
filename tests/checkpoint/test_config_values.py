"""Values of config.json of the wrong kind are named; nulls and unknown keys are not."""

from typing import Any

import pytest

from moeify.checkpoint.config_values import wrong_values


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": ["bert"]},
        {"architectures": "Bert"},
        {"architectures": [1]},
        {"mlp_only_layers": [True]},
        {"moe_layers": [-1]},
        {"layer_types": [[]]},
        {"n_group": float("inf")},
        {"null_kinds": "zero"},
        {"null_experts": -1},
        {"null_experts": 1 << 40},
        {"shared_slices": "1"},
        {"expert_slices": 0},
        {"router_bias": 1},
        {"sliding_window": "4"},
        {"text_config": []},
        {"routed_scaling_factor": float("nan")},
        {"routed_scaling_factor": True},
        {"text_config": {"moe_layers": {}}},
        {"vocab_size": 1 << 40},
    ],
)
def test_wrong_kinds_are_named(config: dict[str, Any]) -> None:
    ((section, key, sentence),) = wrong_values(config)
    assert key in section and sentence.startswith(f"config.json: {key} must be ")


def test_what_is_right_passes() -> None:
    config = {
        "model_type": None,
        "architectures": [],
        "mlp_only_layers": [0, 3],
        "n_group": 1,
        "routed_scaling_factor": 2.5,
        "text_config": {"layer_types": ["x"]},
        "other": [{}],
    }
    assert list(wrong_values(config)) == []


def test_long_values_are_cut() -> None:
    ((_, _, sentence),) = wrong_values({"model_type": ["x" * 10_000]})
    assert len(sentence) < 200
