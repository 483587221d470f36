"""Commands that read text hold one layer's weights where they are told to, and say the same."""

import json
from pathlib import Path

import pytest

import moeify
from moeify.errors import ConfigError
from moeify.routing.passes import LayerByLayer
from tests.real.checkpoints import demo_gpt2
from tests.tiny import HEADS, save_tiny

TEXT = Path(moeify.__file__).parent / "demo" / "text.jsonl"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "moe"
    moeify.upcycle(demo_gpt2(), folder, num_experts=4, noise=0.3)
    return folder


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the layers that are loaded by themselves."""
    opened: list[int] = []
    original = LayerByLayer._devices
    monkeypatch.setattr(
        LayerByLayer, "_devices", lambda self, place: opened.append(place) or original(self, place)
    )
    return opened


def close(one: object, two: object) -> bool:
    """Whether two documents hold the same figures, to 1e-5."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(close, one, two))
    if isinstance(one, float):
        return one == pytest.approx(two, rel=1e-5, abs=1e-6)
    return one == two


def test_inspect(mixture: Path, tmp_path: Path, layers: list[int]) -> None:
    moeify.attach(mixture, tmp_path / "other", seed=5)
    options = {"dataset": str(TEXT), "domain_column": "domain", "max_tokens": 2048, "seq_len": 64,
               "vocabulary": True, "against": str(tmp_path / "other")}  # fmt: skip
    whole = moeify.inspect(mixture, low_memory=False, **options).to_dict()
    assert not layers
    small = moeify.inspect(mixture, low_memory=True, **options).to_dict()
    assert layers == 2 * [*range(whole["num_layers"])]
    assert close(json.loads(json.dumps(whole)), json.loads(json.dumps(small)))


@pytest.mark.parametrize("family", HEADS)
def test_verify(family: str, tmp_path: Path, layers: list[int]) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.3)
    whole = moeify.verify(dense, tmp_path / "moe", low_memory=False).to_dict()
    assert not layers
    small = moeify.verify(dense, tmp_path / "moe", low_memory=True).to_dict()
    assert len(layers) > 4 and close(whole, small)


def test_a_type_whose_layers_are_not_known_is_refused(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
                       vocab_size=32, word_embed_proj_dim=16)  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path)
    assert moeify.verify(tmp_path, tmp_path).bit_exact
    with pytest.raises(ConfigError, match="does not know the layers of 'opt'"):
        moeify.verify(tmp_path, tmp_path, low_memory=True)
