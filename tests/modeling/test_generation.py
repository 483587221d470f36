"""Generation with an upcycled model equals generation with its dense model."""

import pytest
import torch

from tests.modeling.tiny_models import LM_HEADS, dense_model, inputs, upcycle

MODES = {
    "greedy": {},
    "without cache": {"use_cache": False},
    "beam search": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 10},
    "static cache": {"cache_implementation": "static"},
}


def prompt(head):
    batch = inputs(head)
    # Padding goes to the left of a prompt.
    return {name: tensor.flip(-1) for name, tensor in batch.items()}


@pytest.mark.parametrize("head", LM_HEADS)
@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_the_dense_ones(head, mode):
    dense = dense_model(head)
    found = []
    kinds = {"top_k": 1}, {"slices": 4, "top_k": 1}, {"null_experts": 2}
    for model in (dense, upcycle(dense), *(upcycle(dense, **options) for options in kinds)):
        torch.manual_seed(0)
        found.append(
            model.generate(**prompt(head), max_new_tokens=8, pad_token_id=0, eos_token_id=None, **MODES[mode])
        )
    assert found[0].shape[-1] == 17
    assert all(torch.equal(found[0], tokens) for tokens in found)


@pytest.mark.parametrize("head", LM_HEADS)
def test_generation_records_router_logits_when_asked(head):
    model = upcycle(dense_model(head))
    batch = prompt(head)
    expected = model.generate(**batch, max_new_tokens=4, pad_token_id=0)
    found = model.generate(**batch, max_new_tokens=4, pad_token_id=0, output_router_logits=True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("head", LM_HEADS)
def test_a_cached_step_counts_its_own_tokens(head):
    model = upcycle(dense_model(head))
    ids = inputs(head, padded=False)["input_ids"]
    with torch.no_grad():
        first = model(ids[:, :-1], use_cache=True)
        step = model(
            ids[:, -1:],
            attention_mask=torch.ones_like(ids),
            past_key_values=first.past_key_values,
            output_router_logits=True,
        )
        whole = model(ids, output_router_logits=True)
    assert step.router_logits[0].shape == (3, 4)
    last = whole.router_logits[-1].view(3, 9, 4)[:, -1]
    torch.testing.assert_close(step.router_logits[-1], last, atol=1e-5, rtol=1e-5)
