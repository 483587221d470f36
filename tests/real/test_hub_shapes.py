"""Every Hub-shaped checkpoint loads in transformers with nothing missing, twice the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from . import hub_shapes

HEADS = ["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]


def _load(folder: Path, unexpected: set[str] | None = None) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) == (unexpected or set())
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("The sea and it", return_tensors="pt")
    assert tokens["input_ids"].shape[1] > 3
    with torch.no_grad():
        output = model.eval()(**tokens)
    assert torch.isfinite(output[0]).all() and output[0].std() > 0.01
    return model


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            names |= set(shard.keys())
    return names


def test_bert_base_uncased_like(tmp_path: Path) -> None:
    folder = hub_shapes.bert_base_uncased_like(tmp_path / "bert")
    names = _names(folder)
    assert "bert.encoder.layer.0.output.LayerNorm.gamma" in names
    assert "cls.predictions.decoder.weight" not in names
    _load(
        folder,
        unexpected={
            "bert.pooler.dense.bias",
            "bert.pooler.dense.weight",
            "cls.seq_relationship.bias",
            "cls.seq_relationship.weight",
        },
    )


def test_sentence_encoder_like(tmp_path: Path) -> None:
    folder = hub_shapes.sentence_encoder_like(tmp_path / "encoder")
    assert {"embeddings.position_ids", "embeddings.LayerNorm.weight"} <= _names(folder)
    assert (folder / "1_Pooling" / "config.json").is_file()
    _load(folder)


def test_gpt2_like(tmp_path: Path) -> None:
    folder = hub_shapes.gpt2_like(tmp_path / "gpt2")
    names = _names(folder)
    assert {"wte.weight", "h.0.attn.bias"} <= names and "lm_head.weight" not in names
    _load(folder)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("head", HEADS)
def test_qwen_like_heads(tmp_path: Path, model_type: str, head: str) -> None:
    _load(hub_shapes.qwen_like(tmp_path, model_type, head=head))


@pytest.mark.parametrize("shards", [1, 3])
def test_qwen_like_untied_float32(tmp_path: Path, shards: int) -> None:
    folder = hub_shapes.qwen_like(tmp_path, tied=False, dtype="float32", shards=shards)
    assert "lm_head.weight" in _names(folder)
    assert len(list(folder.glob("*.safetensors"))) == shards
    assert next(_load(folder).parameters()).dtype == torch.float32


@pytest.mark.parametrize("make", [getattr(hub_shapes, name) for name in hub_shapes.__all__])
def test_same_seed_same_bytes(tmp_path: Path, make: Callable[..., Path]) -> None:
    first, again, other = (make(tmp_path / str(run), seed=seed) for run, seed in enumerate((0, 0, 1)))
    for file in first.glob("*.safetensors"):
        assert file.read_bytes() == (again / file.name).read_bytes()
        assert file.read_bytes() != (other / file.name).read_bytes()
