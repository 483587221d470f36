"""Scores from weights alone, against the formula in float64, in constant memory, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moeify.checkpoint.reader import Checkpoint
from moeify.pruning.criteria import CRITERIA
from moeify.pruning.opening import open_prunable
from moeify.pruning.prune import prune
from moeify.pruning.scoring import expert_scores
from tests.pruning.tiny_mixtures import EXPERTS, build, save


def formula(parts: list[torch.Tensor]) -> float:
    values = torch.cat([part.double().flatten() for part in parts])
    return float(values.abs().mean() / values.square().mean().sqrt())


def aimer(folder: Path) -> dict[int, list[float]]:
    return expert_scores(CRITERIA["aimer"], open_prunable(Checkpoint.open(folder)), None, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_experts(dtype: torch.dtype, tmp_path: Path) -> None:
    build("qwen3_moe").to(dtype).save_pretrained(tmp_path)
    found = aimer(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer, scores in found.items():
        for expert, score in enumerate(scores):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}."
            wanted = formula([tensors[f"{prefix}{p}_proj.weight"] for p in ("gate", "up", "down")])
            assert score == pytest.approx(wanted, rel=1e-6)


def test_fused_experts_without_their_biases(tmp_path: Path) -> None:
    save("gpt_oss", tmp_path)
    found = aimer(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for expert in range(EXPERTS):
        names = ("gate_up_proj", "down_proj")
        parts = [tensors[f"model.layers.1.mlp.experts.{name}"][expert] for name in names]
        assert found[1][expert] == pytest.approx(formula(parts), rel=1e-6)


def test_high_scores_go(tmp_path: Path) -> None:
    save("olmoe", tmp_path / "m")
    report = prune(tmp_path / "m", tmp_path / "out", keep=3, by="aimer")
    for layer, kept in report.kept.items():
        assert set(kept) == set(np.argsort(report.scores[layer])[:3].tolist())


def test_experts_of_zeros_go_first(tmp_path: Path) -> None:
    model = build("mixtral")
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            getattr(model.model.layers[0].mlp.experts, name)[5].zero_()
    model.save_pretrained(tmp_path / "m")
    report = prune(tmp_path / "m", tmp_path / "out", keep=7, by="aimer")
    assert report.dropped[0] == (5,)


MEMORY = """
import resource, sys
from moeify.pruning.prune import prune
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prune(sys.argv[1], sys.argv[2], keep=2, by="aimer")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, [m for m in ("torch", "transformers", "datasets") if m in sys.modules])
"""


def test_memory_does_not_grow_with_the_experts_and_torch_is_not_imported(tmp_path: Path) -> None:
    grown = []
    for width in (64, 640):
        folder = tmp_path / str(width)
        options = {"intermediate_size": width * 12, "hidden_size": 128}
        build("mixtral", **options).save_pretrained(folder)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, folder, tmp_path / f"out{width}"],
            capture_output=True,
            text=True,
            check=True,
        )
        kib, modules = done.stdout.split(" ", 1)
        assert modules.strip() == "[]"
        grown.append(int(kib))
    size = (tmp_path / "640" / "model.safetensors").stat().st_size
    assert size > 150 << 20 and grown[1] - grown[0] < 24 << 10
