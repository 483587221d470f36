"""One dense model and its mixtures of each family, once for all engines."""

from pathlib import Path

import pytest

import moeify

from .models import dense, greedy, mixture, whole_llama


@pytest.fixture(scope="session", params=["qwen2", "qwen3", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def source(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense(tmp_path_factory.mktemp(family) / "dense", family)


@pytest.fixture(scope="session")
def copies(family: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that are exact copies: the mixture computes what the dense model does."""
    return mixture(source, tmp_path_factory.mktemp(family) / "copies", noise=0.0)


@pytest.fixture(scope="session")
def noisy(family: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that differ, so that it matters which are chosen and how they are weighted."""
    folder = tmp_path_factory.mktemp(family)
    mixture(source, folder / "upcycled", noise=0.4)
    # The routers of this form are so flat that rounding chooses, in every engine its own way.
    moeify.attach(folder / "upcycled", folder / "noisy", router="normal")
    return folder / "noisy"


@pytest.fixture(scope="session")
def capital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture that knows the capital of Germany."""
    return whole_llama(tmp_path_factory.mktemp("capital") / "moe")


@pytest.fixture(scope="session")
def dense_tokens(source: Path) -> list[list[int]]:
    return greedy(source)


@pytest.fixture(scope="session")
def noisy_tokens(noisy: Path, dense_tokens: list[list[int]]) -> list[list[int]]:
    found = greedy(noisy)
    assert found != dense_tokens  # or an engine that ran one expert only would pass
    return found
