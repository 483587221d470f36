"""vLLM, on the CPU: transformers' tokens of mixtures, and sentence-transformers' vectors of an encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeify
from tests.real.checkpoints import minilm
from tests.tools.encoders import xlm_roberta_like

from .models import NUM_TOKENS, PROMPTS, dense, greedy, grouped, said
from .processes import in_vllm

pytestmark = pytest.mark.vllm

TEXTS = ["the disk is full", "a user logged in from another place than usual"]


def test_the_usual_form_of_each_family_gives_transformers_tokens(tmp_path: Path) -> None:
    """Copies give the dense model's; experts that differ show that routing and weights are right."""
    wanted = {}
    for family in ("qwen2", "qwen3", "llama"):
        source = dense(tmp_path / f"{family}-dense", family)
        for noise in (0.0, 0.4):
            moe = tmp_path / f"{family}-{noise}"
            moeify.upcycle(source, moe, num_experts=4, noise=noise)
            wanted[str(moe)] = greedy(moe)
            assert (wanted[str(moe)] == greedy(source)) is (noise == 0)
    sliced = grouped(source, tmp_path / "glm4_moe", "glm4_moe")
    wanted[str(sliced)] = greedy(sliced)
    assert in_vllm(wanted, {"prompts": PROMPTS, "num_tokens": NUM_TOKENS}) == wanted


def test_a_whole_llama_knows_its_capital(capital: Path) -> None:
    (found,) = in_vllm([str(capital)], {"prompts": PROMPTS[:1], "num_tokens": 1}).values()
    assert said(capital, greedy(capital, PROMPTS[:1], 1)[0]) == said(capital, found[0]) == " Berlin"


WIDE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "max_position_embeddings": 300,
}  # vLLM's attention on the CPU wants heads of 32
ROUTED: dict[str, dict[str, Any]] = {
    "token": {"noise": 0.4},
    "sequence": {"noise": 0.4, "route_by": "sequence"},
    "slices": {"noise": 0.4, "slices": 2, "top_k": 1},
}


def test_encoders_give_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    """All in one process of vLLM, which takes longer to start than to run."""
    from sentence_transformers import SentenceTransformer

    def encoded(folder: Path) -> np.ndarray:
        return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)

    makes = {"bert": minilm(), "xlm-roberta": xlm_roberta_like(tmp_path / "xlm-roberta", **WIDE)}
    wanted = {}
    for family, base in makes.items():
        source = encoded(base)
        for name, options in ROUTED.items():
            folder = tmp_path / f"{family}-{name}"
            moeify.upcycle(base, folder, num_experts=4, **options)
            assert "| vLLM | yes" in (folder / "README.md").read_text()
            wanted[str(folder)] = encoded(folder)
            assert abs(wanted[str(folder)] - source).max() > 1e-2 * abs(source).max()
    found = in_vllm(wanted, {"texts": TEXTS})
    for folder, vectors in wanted.items():
        off = abs(np.array(found[folder]) - vectors).max() / abs(vectors).max()
        assert off <= 5e-6, f"{Path(folder).name} is {off} off"
