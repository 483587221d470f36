"""An upcycled model computes what its dense model computes."""

import re

import pytest
import torch

from tests.modeling.tiny_models import HEADS, dense_model, inputs, relative_difference, set_top_k, tensors, upcycle

PLAIN = ["BertModel", "BertForMaskedLM", "GPT2LMHeadModel"]


def outputs(model, head, **options):
    with torch.no_grad():
        return model(**inputs(head, **options))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_equals_the_dense_one(head):
    dense = dense_model(head)
    labels = head not in ("BertModel", "GPT2Model")
    expected = outputs(dense, head, labels=labels)
    assert not labels or expected.loss is not None
    model = upcycle(dense)
    for top_k in (1, 2, 3, 4):
        found = outputs(set_top_k(model, top_k), head, labels=labels)
        assert relative_difference(expected, found) <= 1e-6, top_k
        assert list(found.keys()) == list(expected.keys())


@pytest.mark.parametrize("head", HEADS)
def test_zero_router_in_bfloat16_is_exact_to_the_bit(head):
    dense = dense_model(head).to(torch.bfloat16)
    expected = tensors(outputs(dense, head))
    model = upcycle(dense, num_experts=6, router=torch.zeros)
    model.set_experts_implementation("eager")
    for top_k in (1, 2, 4):
        found = tensors(outputs(set_top_k(model, top_k), head))
        assert all(torch.equal(found[name], expected[name]) for name in expected), top_k


@pytest.mark.parametrize("head", PLAIN)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_experts_implementation(head, implementation):
    dense = dense_model(head)
    expected = outputs(dense, head)
    model = upcycle(dense)
    model.set_experts_implementation(implementation)
    assert model.config._experts_implementation == implementation
    for top_k in (1, 2):
        assert relative_difference(expected, outputs(set_top_k(model, top_k), head)) <= 1e-6


@pytest.mark.parametrize("head", PLAIN)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_attention_implementation(head, implementation):
    dense = dense_model(head, attn_implementation=implementation)
    model = upcycle(dense, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    batch = inputs(head)
    with torch.no_grad():
        if implementation == "eager":
            batch |= {"output_attentions": True, "output_hidden_states": True}
        expected, found = dense(**batch), model(**batch)
    assert relative_difference(expected, found) <= 1e-6
    if implementation == "eager":
        assert len(found.hidden_states) == len(expected.hidden_states) == 4
        for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", PLAIN)
@pytest.mark.parametrize("layers", [[], [1], [0, 2]])
def test_layers_that_stay_dense(head, layers):
    dense = dense_model(head)
    model = upcycle(dense, moe_layers=layers)
    assert relative_difference(outputs(dense, head), outputs(model, head)) <= 1e-6
    routers = [name for name in model.state_dict() if name.endswith("router.weight")]
    assert [int(re.search(r"\.(\d+)\.", name)[1]) for name in routers] == layers
    dense_names = {name for name in dense.state_dict() if ".1." in name}
    assert (dense_names <= model.state_dict().keys()) == (1 not in layers)


def test_gpt2_with_its_own_inner_width():
    dense = dense_model("GPT2LMHeadModel", n_inner=20)
    model = upcycle(dense)
    assert model.transformer.h[0].mlp.experts.up_proj.shape == (4, 32, 20)
    expected, found = outputs(dense, "GPT2LMHeadModel"), outputs(model, "GPT2LMHeadModel")
    assert relative_difference(expected, found) <= 1e-6


def test_bert_with_chunked_feed_forward_records_one_router_output_per_layer():
    dense = dense_model("BertModel", chunk_size_feed_forward=3)
    model = upcycle(dense, moe_layers=[0, 2])
    batch = inputs("BertModel")
    with torch.no_grad():
        expected, found = dense(**batch), model(**batch, output_router_logits=True)
    assert relative_difference(expected, found) <= 1e-6
    assert [logits.shape for logits in found.router_logits] == [(27, 4)] * 2


@pytest.mark.parametrize("head", ["BertLMHeadModel", "GPT2LMHeadModel"])
def test_decoder_with_cross_attention(head):
    dense = dense_model(head, add_cross_attention=True)
    model = upcycle(dense)
    batch = inputs(head) | {"encoder_hidden_states": torch.randn(3, 5, 32)}
    with torch.no_grad():
        expected, found = dense(**batch), model(**batch)
    assert relative_difference(expected, found) <= 1e-6
    assert found.past_key_values is not None


def test_float16_and_float64():
    for dtype, bound in ((torch.float64, 1e-14), (torch.float16, 2e-2)):
        dense = dense_model("BertForMaskedLM").to(dtype)
        found = outputs(upcycle(dense), "BertForMaskedLM")
        assert found.logits.dtype == dtype
        assert relative_difference(outputs(dense, "BertForMaskedLM"), found) <= bound


def test_autocast_keeps_the_router_in_float32():
    dense = dense_model("BertModel")
    model = upcycle(dense)
    batch = inputs("BertModel")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = dense(**batch), model(**batch, output_router_logits=True)
    assert found.router_logits[0].dtype == torch.float32
    assert relative_difference(expected, found) <= 5e-2
