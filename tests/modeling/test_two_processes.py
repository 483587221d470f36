"""A model is split over processes by the plans that its configuration holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import moeify
from moeify.modeling import modeling_moe
from moeify.modeling.configuration_moe import config_class
from moeify.modeling.moe_families import FAMILIES
from tests.modeling.checkpoints import REPOSITORY
from tests.modeling.tiny_models import dense_model, upcycle, vary_experts
from tests.modeling.two_processes import PLANS
from tests.tiny import save_tiny, sizes_of


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_name_every_tensor_of_experts(family: str) -> None:
    """Biases too, where a key gives some. Under tensor parallelism each rank has the last ones whole."""
    biased = {"mlp_bias": True} if hasattr(transformers.CONFIG_MAPPING[family](), "mlp_bias") else {}
    config = config_class(family)(**sizes_of(family), **biased, num_experts=2)
    base = getattr(modeling_moe, FAMILIES[family].moe_prefix + FAMILIES[family].heads[""])(config)
    held = {re.sub(r"\d+", "*", name) for name, _ in base.named_parameters() if ".experts." in name}
    assert len(held) == (4 if biased or any(name.endswith("_bias") for name in held) else 2)
    assert held <= config.base_model_ep_plan.keys()
    assert {name for name in held if not name.endswith("down_proj_bias")} <= config.base_model_tp_plan.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    heads = ["BertForMaskedLM", "GPT2LMHeadModel"]
    for head in heads:
        vary_experts(upcycle(dense_model(head), moe_layers=[0, 2])).save_pretrained(tmp_path / head)
    heads.append("LlamaForCausalLM")
    dense = save_tiny(tmp_path / "dense", "llama", mlp_bias=True)
    moeify.upcycle(dense, tmp_path / heads[-1], num_experts=4, layers="1-3", noise=0.4, router="normal")
    folders = [str(tmp_path / head) for head in heads]
    command = [sys.executable, "-m", "tests.modeling.two_processes"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting"), *folders],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    printed, errors = zip(*results, strict=True)
    assert printed == ("".join(f"{head} {plan}\n" for head in heads for plan in PLANS),) * 2, errors
