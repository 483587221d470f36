"""vLLM, on the CPU: transformers' tokens of mixtures, and sentence-transformers' vectors of an encoder."""

from pathlib import Path

import numpy as np
import pytest

import moeify
from tests.real.checkpoints import minilm

from .models import NUM_TOKENS, PROMPTS, dense, greedy, said
from .processes import in_vllm

pytestmark = pytest.mark.vllm

TEXTS = ["the disk is full", "a user logged in from another place than usual"]


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_usual_form_of_each_family_gives_transformers_tokens(noise: float, tmp_path: Path) -> None:
    """Copies give the dense model's; experts that differ show that routing and weights are right."""
    wanted = {}
    for family in ("qwen2", "qwen3", "llama"):
        source = dense(tmp_path / f"{family}-dense", family)
        moe = tmp_path / family
        moeify.upcycle(source, moe, num_experts=4, noise=noise)
        wanted[str(moe)] = greedy(moe)
        assert (wanted[str(moe)] == greedy(source)) is (noise == 0)
    assert in_vllm(wanted, {"prompts": PROMPTS, "num_tokens": NUM_TOKENS}) == wanted


def test_a_whole_llama_knows_its_capital(capital: Path) -> None:
    (found,) = in_vllm([str(capital)], {"prompts": PROMPTS[:1], "num_tokens": 1}).values()
    assert said(capital, greedy(capital, PROMPTS[:1], 1)[0]) == said(capital, found[0]) == " Berlin"


def test_an_encoder_gives_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    def encoded(folder: Path) -> np.ndarray:
        return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)

    wanted = {}
    for name, noise, route_by in (("copies", 0.0, "token"), ("token", 0.4, "token"), ("sequence", 0.4, "sequence")):
        moeify.upcycle(minilm(), tmp_path / name, num_experts=4, noise=noise, route_by=route_by)
        assert "| vLLM | yes" in (tmp_path / name / "README.md").read_text()
        wanted[name] = encoded(tmp_path / name)
    changed = {name: abs(vectors - encoded(minilm())).max() > 1e-2 for name, vectors in wanted.items()}
    assert changed == {"copies": False, "token": True, "sequence": True}
    found = in_vllm([str(tmp_path / name) for name in wanted], {"texts": TEXTS})
    for name, vectors in wanted.items():
        assert abs(np.array(found[str(tmp_path / name)]) - vectors).max() <= 1e-6
