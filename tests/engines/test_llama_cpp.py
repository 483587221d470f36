"""llama.cpp, through its own converter, chooses the tokens that transformers chooses."""

import pytest

from .models import said
from .processes import converted, tokens

pytestmark = pytest.mark.engines


def test_exact_copies_give_the_dense_tokens(copies, dense_tokens, tmp_path):
    assert tokens("llama_cpp", converted(copies, tmp_path / "copies.gguf")) == dense_tokens


def test_experts_that_differ_give_the_mixture_tokens(noisy, noisy_tokens, tmp_path):
    assert tokens("llama_cpp", converted(noisy, tmp_path / "noisy.gguf")) == noisy_tokens


def test_a_whole_llama_knows_its_capital(capital, tmp_path):
    assert said(capital, tokens("llama_cpp", converted(capital, tmp_path / "whole.gguf"))[0][:1]) == " Berlin"
