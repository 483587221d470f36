"""mlx-lm, on the CPU, chooses the tokens that transformers chooses."""

import pytest

from .models import greedy, grouped, said
from .processes import tokens

pytestmark = pytest.mark.engines


def test_exact_copies_give_the_dense_tokens(copies, dense_tokens):
    assert tokens("mlx", copies) == dense_tokens


def test_experts_that_differ_give_the_mixture_tokens(noisy, noisy_tokens):
    assert tokens("mlx", noisy) == noisy_tokens


def test_copies_in_slices_give_the_mixture_tokens(source, family, dense_tokens, tmp_path):
    for arch in ("glm4_moe", *(("dots1",) if family == "qwen3" else ())):
        grouped(source, tmp_path / arch, arch)
        found = greedy(tmp_path / arch)
        assert found != dense_tokens
        assert tokens("mlx", tmp_path / arch) == found


def test_a_whole_llama_knows_its_capital(capital):
    assert said(capital, tokens("mlx", capital)[0][:1]) == " Berlin"
