"""Commands that read text hold one layer's weights where they are told to, and say the same."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import moeify
from moeify.errors import ConfigError, DatasetError, OutputError
from moeify.routing.passes import LayerByLayer
from tests.real.checkpoints import demo_gpt2
from tests.tiny import HEADS, save_tiny

ROUTERS = "model-00002-of-00002.safetensors"
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
    monkeypatch.setattr(LayerByLayer, "_devices", lambda self, place: opened.append(place) or original(self, place))
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
    options = {
        "dataset": str(TEXT),
        "domain_column": "domain",
        "max_tokens": 2048,
        "seq_len": 64,
        "vocabulary": True,
        "against": str(tmp_path / "other"),
    }
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

    config = OPTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, vocab_size=32, word_embed_proj_dim=16
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    assert moeify.verify(tmp_path, tmp_path).bit_exact
    with pytest.raises(ConfigError, match="does not know the layers of 'opt'"):
        moeify.verify(tmp_path, tmp_path, low_memory=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fit", "extra"),
    [
        ("kmeans", {}),
        ("domains", {"reference": True}),
        ("none", {"loss": "distill"}),
        ("none", {"loss": "distill", "reference": True}),
    ],
)
def test_warmup(fit: str, extra: dict[str, object], mixture: Path, tmp_path: Path, layers: list[int]) -> None:
    options = {
        "dataset": str(TEXT),
        "domain_column": "domain",
        "seq_len": 32,
        "fit_tokens": 2048,
        "eval_tokens": 1024,
        "steps": 0,
        "fit": fit,
        "device": "cpu",
        **extra,
    }
    if "reference" in extra:
        options["reference"] = str(demo_gpt2())
    reports = {
        low: moeify.warmup(mixture, tmp_path / str(low), low_memory=low, **options).to_dict() for low in (False, True)
    }
    assert layers
    for report in reports.values():
        for key in list(report):
            if key.endswith("seconds") or key in ("output", "bytes_carried"):
                report.pop(key)
    assert close(json.loads(json.dumps(reports[False])), json.loads(json.dumps(reports[True])))
    one, two = (load_file(tmp_path / str(low) / ROUTERS) for low in (False, True))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-5, atol=1e-6), name


def test_a_disk_that_fills_up_with_what_layers_give(mixture: Path, tmp_path: Path) -> None:
    text, new = {"dataset": str(TEXT), "max_tokens": 512, "seq_len": 64}, tmp_path / "new.jsonl"
    new.write_text('{"text": "a line"}\n' * 999)
    moeify.inspect(mixture, **text)  # datasets has its copy of the text
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="no space left"):
            moeify.inspect(mixture, **text, low_memory=True)
        with pytest.raises(DatasetError, match=r"cannot keep .*new\.jsonl in its cache"):
            moeify.inspect(mixture, **text | {"dataset": str(new)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_warmup_that_trains_needs_all_weights(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="200 training steps need all weights in memory"):
        moeify.warmup(mixture, tmp_path / "out", dataset=str(TEXT), low_memory=True)


def test_upcycle_and_add(tmp_path: Path, layers: list[int]) -> None:
    base, found = demo_gpt2(), []
    domains = sorted({json.loads(line)["domain"] for line in TEXT.read_text().splitlines()})
    text = {"dataset": str(TEXT), "domain_column": "domain", "router": "data", "fit_tokens": 2048, "seq_len": 32}
    for low in (False, True):
        moe, more = tmp_path / f"moe-{low}", tmp_path / f"more-{low}"
        one = moeify.upcycle(
            base, moe, experts_from=[base] * len(domains), labels=domains, noise=0.3, low_memory=low, **text
        )
        two = moeify.add_experts(moe, more, experts=[base], labels=domains[:1], low_memory=low, **text)
        found.append((one.label_agreement, two.label_agreement))
        assert bool(layers) is low
    assert found[0] == pytest.approx(found[1], abs=1e-3)
