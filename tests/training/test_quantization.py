"""Experts in 4 bits by bitsandbytes itself, on the CPU."""

import warnings

import peft
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig

import moeify
from moeify.errors import ConfigError
from tests.real.checkpoints import minilm
from tests.routing.tiny_mixtures import MODEL_TYPES, mixture

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("nf4") / "moe"
    moeify.upcycle(minilm(), place, num_experts=4, noise=0.0)
    return place


def loaded(folder):
    model = AutoModel.from_pretrained(folder, quantization_config=NF4, dtype=torch.float32)
    moeify.quantize_experts(model, "nf4")
    return model


def batch():
    texts = ["the disk is full", "kernel panic at boot time, stopping the machine now"]
    return AutoTokenizer.from_pretrained(minilm())(texts, padding=True, return_tensors="pt")


@pytest.mark.real
def test_minilm_is_as_the_dense_one_in_4_bits(folder):
    dense = AutoModel.from_pretrained(minilm(), quantization_config=NF4, dtype=torch.float32).eval()
    model = loaded(folder).eval()
    sizes = [one.get_memory_footprint() / 1e6 for one in (dense, model)]
    assert sizes == pytest.approx([53.2, 64.0], abs=0.1)
    with torch.no_grad():
        expected, found = (one(**batch()).last_hidden_state for one in (dense, model))
    assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.real
def test_lora_and_routers_train_on_it_and_come_back(folder, tmp_path):
    """For inference on a CPU bitsandbytes lays linear layers out anew, so the model trains from the start."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["router"])
    model = peft.get_peft_model(loaded(folder), config)
    names = moeify.train_only(model.train(), "all")
    assert len(names) == 6 * (2 * 2 + 1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        outputs = model(**batch(), output_router_logits=True)
        loss = outputs.last_hidden_state[:, 0].square().mean() + 0.01 * outputs.aux_loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {name for name, p in model.named_parameters() if not p.equal(before[name])} == set(names)
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(loaded(folder), tmp_path).eval()
    with torch.no_grad():
        found, expected = (one(**batch()).last_hidden_state for one in (again, model))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_experts_of_every_kind(model_type):
    """Each weight is what bitsandbytes makes of it and no more: the model computes with those."""
    import bitsandbytes.functional as bnb

    model, rounded = mixture(model_type), mixture(model_type)
    names = moeify.quantize_experts(model, "fp4", double_quant=True)
    assert names and all(".experts." in name and not name.endswith("bias") for name in names)
    for name in names:
        weight = rounded.get_parameter(name)
        packed, state = bnb.quantize_4bit(weight.data, quant_type="fp4", compress_statistics=True)
        weight.data = bnb.dequantize_4bit(packed, state)
    ids = torch.arange(2, 26).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, rounded(input_ids=ids).logits)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "router" in n or n.endswith("gate.weight"))
    with pytest.raises(ConfigError, match="is quantised"):
        moeify.train_only(model, "moe")


@pytest.mark.real
def test_shared_slices_are_packed_too(tmp_path):
    """Noiseless slices of whole blocks of 64 weights are the dense layer's own in 4 bits."""
    moeify.upcycle(minilm(), tmp_path / "moe", num_experts=2, top_k=1, slices=4, shared=2, noise=0.0)
    dense = AutoModel.from_pretrained(minilm(), quantization_config=NF4, dtype=torch.float32).eval()
    model = AutoModel.from_pretrained(tmp_path / "moe", quantization_config=NF4, dtype=torch.float32).eval()
    names = moeify.quantize_experts(model)
    assert sum(".shared." in name for name in names) == 6 * 2
    with torch.no_grad():
        expected, found = (one(**batch()).last_hidden_state for one in (dense, model))
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_what_cannot_be_packed_is_said():
    model = mixture("bert_moe")
    with pytest.raises(ConfigError, match="not 'int8'"):
        moeify.quantize_experts(model, "int8")
    with pytest.raises(ConfigError, match="Linear holds no mixture"):
        moeify.quantize_experts(torch.nn.Linear(2, 2))
    moeify.quantize_experts(model)
    with pytest.raises(ConfigError, match="no weights that could be packed"):
        moeify.quantize_experts(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"target_modules": [], "target_parameters": ["experts.up_proj"]}
        adapted = peft.get_peft_model(mixture("bert_moe"), peft.LoraConfig(r=2, **options))
    with pytest.raises(ConfigError, match="has adapters"):
        moeify.quantize_experts(adapted)
