"""What torch.export and torch.compile make of the models computes what the models compute."""

import pytest
import torch
from transformers import DynamicCache

from tests.modeling.tiny_models import VOCABULARY, dense_model, inputs, tensors, upcycle, vary_experts


def build(head, size=None, **options):
    """One layer: tracing takes its time for each."""
    depth = {"num_hidden_layers": 1} | ({"intermediate_size": size} if size else {})
    return vary_experts(upcycle(dense_model(head, **depth), **options))


def batch(rows, length, choices=()):
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(2, VOCABULARY, (rows, *choices, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, ..., -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def same(traced, model, given):
    expected, found = tensors(model(**given)), traced(**given)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("head", "route_by"),
    [
        ("BertForMaskedLM", "token"),
        ("BertForMaskedLM", "sequence"),
        ("BertForMultipleChoice", "sequence"),
        ("GPT2LMHeadModel", "token"),
        ("GPT2LMHeadModel", "sequence"),
    ],
)
def test_an_export_takes_other_batches_and_lengths(head, route_by):
    model = build(head, route_by=route_by)
    model.config.use_cache = False
    choices = (2,) if "Choice" in head else ()
    given = batch(3, 9, choices)
    rows, length = torch.export.Dim("rows", max=64), torch.export.Dim("length", max=40)
    shapes = {name: {0: rows, tensor.ndim - 1: length} for name, tensor in given.items()}
    exported = torch.export.export(model, (), given, dynamic_shapes=shapes).module()
    for size in ((3, 9), (5, 12), (2, 4)):
        same(exported, model, batch(*size, choices))


def test_router_logits_of_an_export():
    model = build("BertForMaskedLM", output_router_logits=True)
    given = batch(3, 9)
    rows = {0: torch.export.Dim("rows", max=64)}
    exported = torch.export.export(model, (), given, dynamic_shapes=dict.fromkeys(given, rows))
    other = batch(4, 9)
    found, expected = exported.module()(**other), model(**other)
    torch.testing.assert_close(found.aux_loss, expected.aux_loss)
    torch.testing.assert_close(found.router_logits, expected.router_logits)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_an_export_keeps_the_implementation_that_is_asked_for(implementation):
    model = build("BertModel")
    model.set_experts_implementation(implementation)
    exported = torch.export.export(model, (), batch(3, 9))
    operations = {str(node.target) for node in exported.graph.nodes}
    assert any("grouped_mm" in name for name in operations) == (implementation == "grouped_mm")
    assert any("bmm" in name for name in operations) == (implementation == "batched_mm")
    same(exported.module(), model, batch(3, 9))


@pytest.mark.parametrize("size", [48, 50])
def test_the_default_compiles_in_one_piece(size):
    """Rows of 50 numbers in half precision are nothing for torch's grouped products."""
    model = build("BertModel", size).to(torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found, expected = (m(**batch(3, 9)).last_hidden_state for m in (compiled, model))
    assert (found - expected).abs().mean() < 0.01 * expected.abs().mean()


@pytest.mark.parametrize(("head", "route_by"), [("BertForMaskedLM", "token"), ("GPT2LMHeadModel", "sequence")])
def test_training_compiles_in_one_piece(head, route_by):
    model = build(head, route_by=route_by)
    model.config.loss_type = "ForMaskedLM" if "Masked" in head else "ForCausalLM"
    model.loss_type = model.config.loss_type
    given = inputs(head, labels=True)
    expected = model(**given, output_router_logits=True)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(**given, output_router_logits=True)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)
    found.loss.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-4)


def test_a_step_with_a_cache_compiles_in_one_piece():
    model = build("GPT2LMHeadModel")
    assert model._can_compile_fullgraph
    ids = batch(2, 9)["input_ids"]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        cache = model(ids[:, :-1], past_key_values=DynamicCache()).past_key_values
        found = compiled(ids[:, -1:], past_key_values=cache).logits
        torch.testing.assert_close(found, model(ids).logits[:, -1:], atol=2e-5, rtol=1e-4)


def test_layers_compiled_one_by_one_know_the_batch():
    model = vary_experts(upcycle(dense_model("GPT2LMHeadModel", n_layer=2), route_by="sequence"))
    given = inputs("GPT2LMHeadModel")
    with torch.no_grad():
        expected = model(**given, output_router_logits=True)
        torch._dynamo.reset()
        for layer in model.transformer.h:
            layer.compile(backend="aot_eager")
        found = model(**given, output_router_logits=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.router_logits, expected.router_logits, atol=1e-5, rtol=1e-5)
