"""The configurations and what they refuse."""

import json

import pytest

from moeify.modeling import REMOTE_CODE
from moeify.modeling.configuration_moe import BertMoeConfig, GPT2MoeConfig
from moeify.modeling.modeling_moe import BertMoeModel
from tests.modeling.tiny_models import dense_config

BOTH = pytest.mark.parametrize("config_class", [BertMoeConfig, GPT2MoeConfig])


@BOTH
def test_defaults(config_class):
    config = config_class()
    assert (config.num_experts, config.num_experts_per_tok, config.moe_layers) == (8, 2, None)
    assert config.norm_topk_prob
    assert (config.router_aux_loss_coef, config.router_z_loss_coef) == (0.01, 0.0)
    assert not config.output_router_logits
    assert all(config.is_moe_layer(n) for n in range(config.num_hidden_layers))
    assert {"aux_loss", "router_logits"} <= set(config.keys_to_ignore_at_inference)


@BOTH
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts": 0}, "num_experts must be a whole number of at least 1, not 0"),
        ({"num_experts": 2.5}, "not 2.5"),
        ({"num_experts_per_tok": 9}, "between 1 and num_experts = 8, not 9"),
        ({"num_experts_per_tok": 0}, "between 1 and num_experts = 8, not 0"),
        ({"moe_layers": [0, 12]}, r"names \[12\], but the model's layers are 0 to 11"),
        ({"moe_layers": [-1]}, r"names \[-1\]"),
        ({"router_bias": 1}, "router_bias must be true or false, not 1"),
        ({"route_by": "word"}, "route_by must be 'token' or 'sequence', not 'word'"),
        ({"router_aux_loss_coef": -0.1}, "router_aux_loss_coef must be 0 or a positive number"),
        ({"router_z_loss_coef": float("nan")}, "router_z_loss_coef"),
        ({"router_jitter_noise": 1.0}, "router_jitter_noise must be at least 0 and less than 1, not 1.0"),
    ],
)
def test_impossible_keys(config_class, keys, message):
    with pytest.raises(ValueError, match=message):
        config_class(**keys)


def test_a_model_checks_a_config_changed_later():
    config = BertMoeConfig(**dense_config("BertModel").to_dict() | {"model_type": "bert_moe"})
    config.num_experts_per_tok = 9
    with pytest.raises(ValueError, match="not 9"):
        BertMoeModel(config)


@BOTH
def test_round_trip_through_json(config_class, tmp_path):
    config = config_class(num_experts=6, moe_layers=[1, 3], norm_topk_prob=False, route_by="sequence")
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert (loaded.num_experts, loaded.moe_layers, loaded.norm_topk_prob) == (6, [1, 3], False)
    assert loaded.route_by == "sequence"
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == config_class.model_type
    key = "AutoConfig"
    assert written["auto_map"] == {key: REMOTE_CODE[config_class.model_type].auto_map[key]}
    # The files the configuration needs come along.
    assert (tmp_path / "configuration_moe.py").exists()
