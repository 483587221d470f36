"""A model is split over processes by the plans that its configuration holds."""

import subprocess
import sys

import pytest

from tests.modeling.checkpoints import REPOSITORY
from tests.modeling.tiny_models import dense_model, upcycle, vary_experts
from tests.modeling.two_processes import PLANS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_compute_what_one_does(tmp_path):
    heads = ["BertForMaskedLM", "GPT2LMHeadModel"]
    for head in heads:
        vary_experts(upcycle(dense_model(head), moe_layers=[0, 2])).save_pretrained(tmp_path / head)
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
