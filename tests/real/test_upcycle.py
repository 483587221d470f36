"""Real trained checkpoints, and files shaped as on the Hub, through the whole job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import moeify
from moeify.routing.loading import load_model, load_tokenizer
from tests.families.test_contract import load_strictly
from tests.real import hub_shapes
from tests.real.checkpoints import demo_gpt2, microformer, minilm, rxnfp, smollm2
from tests.tiny import state

TEXT = [json.loads(line)["text"] for line in (demo_gpt2().parent / "text.jsonl").open()][::16]


@pytest.mark.real
@pytest.mark.parametrize("build", [minilm, microformer, rxnfp, demo_gpt2])
@pytest.mark.parametrize("router", ["calibrated", "zeros"])
def test_real_checkpoints_stay_exact(tmp_path: Path, build: object, router: str) -> None:
    dense = build()  # type: ignore[operator]
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0, router=router)
    report = moeify.verify(dense, tmp_path / "moe")
    assert report.relative_diff <= 1e-6
    assert report.top1_agreement == 1.0


@pytest.mark.real
def test_sources_equal_to_the_base_are_exact_on_real_text(tmp_path: Path) -> None:
    dense = demo_gpt2()
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXT), encoding="utf-8")
    moeify.upcycle(
        dense,
        tmp_path / "moe",
        experts_from=[dense, dense],
        labels=["bible", "jargon"],
        num_experts=4,
        noise=0.0,
        router="data",
        dataset=str(dense.parent / "text.jsonl"),
        domain_column="domain",
        fit_tokens=4096,
    )
    report = moeify.verify(dense, tmp_path / "moe", text=text, batch=4, seq_len=128)
    assert report.relative_diff <= 1e-6
    assert report.top1_agreement == 1.0


@pytest.mark.real
def test_sentence_embeddings_are_the_same(tmp_path: Path) -> None:
    moeify.upcycle(minilm(), tmp_path / "moe", num_experts=8, noise=0.0)
    assert (tmp_path / "moe" / "modules.json").exists()
    assert (tmp_path / "moe" / "1_Pooling" / "config.json").exists()
    before, after = (_embed(folder) for folder in (minilm(), tmp_path / "moe"))
    assert (before - after).abs().max() <= 1e-6


def _embed(folder: Path) -> torch.Tensor:
    tokens = load_tokenizer(folder)(TEXT, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = load_model(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.real
def test_a_few_layers_of_smollm2_as_qwen2(tmp_path: Path) -> None:
    dense = smollm2(num_layers=4)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0)
    model = load_strictly(tmp_path / "moe")
    assert report.params_total == model.num_parameters()
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6


@pytest.mark.real
def test_bfloat16_smollm2_with_tied_experts_is_bit_exact(tmp_path: Path) -> None:
    dense = smollm2(num_layers=4, dtype="bfloat16")
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0, router="zeros")
    assert moeify.verify(dense, tmp_path / "moe").bit_exact


@pytest.mark.real
def test_smollm2_knows_the_capital_of_germany_before_and_after(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    dense = smollm2()
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, top_k=2, noise=0.0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(dense)
    prompt = "The capital of France is Paris, and the capital of Germany is"
    tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
    for folder in (dense, tmp_path / "moe"):
        with torch.inference_mode():
            best = load_model(folder)(tokens).logits[0, -1].argmax()
        assert tokenizer.decode([int(best)]) == " Berlin"


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_an_untrained_calibrated_router_is_neither_saturated_nor_flat(tmp_path: Path, name: str) -> None:
    dense = minilm() if name == "minilm" else smollm2()
    moeify.upcycle(dense, tmp_path / "moe", num_experts=8, noise=0.0)
    routers = {n: t.numpy() for n, t in state(tmp_path / "moe").items() if _is_router(n)}
    assert len(routers) == (6 if name == "minilm" else 30)
    for layer, inputs in _router_inputs(dense, name).items():
        rows = next(t for n, t in routers.items() if f"layer.{layer}." in n or f"s.{layer}." in n)
        logits = (inputs @ rows.T).astype(np.float64)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        entropy = -(p * np.log(p)).sum(1).mean() / np.log(8)
        assert 0.8 < entropy < 0.99, f"layer {layer}"
        chosen = np.argsort(-logits, axis=1)[:, :2]
        tokens_per_expert = np.bincount(chosen.ravel(), minlength=8)
        assert tokens_per_expert.min() > 0.1 * tokens_per_expert.mean(), f"layer {layer}"


def _is_router(name: str) -> bool:
    return name.endswith(("router.weight", "mlp.gate.weight"))


def _router_inputs(folder: Path, name: str) -> dict[int, np.ndarray]:
    """What the FFN of each layer reads on real text, [N, H]."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    layers = model.encoder.layer if name == "minilm" else model.model.layers
    found: dict[int, list[torch.Tensor]] = {}
    for number, layer in enumerate(layers):
        norm = layer.attention.output.LayerNorm if name == "minilm" else layer.post_attention_layernorm
        norm.register_forward_hook(
            lambda module, args, output, number=number: found.setdefault(number, []).append(output.flatten(0, -2))
        )
    with torch.inference_mode():
        for text in TEXT:
            model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt"))
    return {number: torch.cat(parts).numpy() for number, parts in found.items()}


@pytest.mark.parametrize("shape", ["bert", "gpt2", "sentence encoder", "qwen2", "qwen3", "qwen2 untied"])
def test_files_shaped_as_on_the_hub(tmp_path: Path, shape: str) -> None:
    folder = tmp_path / "dense"
    if shape == "bert":
        hub_shapes.bert_base_uncased_like(folder)
    elif shape == "gpt2":
        hub_shapes.gpt2_like(folder)
    elif shape == "sentence encoder":
        hub_shapes.sentence_encoder_like(folder)
    else:
        hub_shapes.qwen_like(folder, model_type=shape.split()[0], tied="untied" not in shape)
    report = moeify.upcycle(folder, tmp_path / "moe", num_experts=2, noise=0.0, router="zeros")
    assert report.params_dense == load_model(folder).num_parameters()
    model = load_strictly(tmp_path / "moe")
    assert report.params_total == model.num_parameters()
    comparison = moeify.verify(folder, tmp_path / "moe")
    assert comparison.relative_diff <= 1e-6
    names = set(state(tmp_path / "moe"))
    assert not {n for n in names if n.endswith((".gamma", ".beta", ".attn.bias", "position_ids"))}
    if shape == "sentence encoder":
        assert (tmp_path / "moe" / "modules.json").exists()
