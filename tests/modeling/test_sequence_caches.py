"""What a sequence-routing decoder keeps in its cache, and generation with it."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.modeling.sequence_models import CLOSE, by_sequence, run
from tests.modeling.tiny_models import LM_HEADS, dense_model, inputs, upcycle, vary_experts


def caches(model):
    config = model.config
    return {
        "dynamic": DynamicCache(config=config),
        "without a config": DynamicCache(),
        "static": StaticCache(config=config, max_cache_len=16),
    }


@pytest.mark.parametrize("head", LM_HEADS)
@pytest.mark.parametrize("kind", ["dynamic", "without a config", "static"])
@pytest.mark.parametrize("pieces", [(9,), (4, 5), (6, 1, 1, 1)])
def test_a_cache_filled_in_pieces_equals_one_pass(head, kind, pieces):
    model = by_sequence(head, moe_layers=[0, 2])
    ids = inputs(head, padded=False)["input_ids"]
    whole = run(model, ids, use_cache=False).logits
    cache, found = caches(model)[kind], []
    for piece in ids.split(pieces, dim=1):
        found.append(run(model, piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, **CLOSE)


@pytest.mark.parametrize("head", LM_HEADS)
def test_a_padded_prompt_goes_on_as_it_would_alone(head):
    model = by_sequence(head)
    ids = inputs(head, padded=False)["input_ids"]
    mask = torch.ones_like(ids)
    mask[2, :3] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    first = run(model, ids[:, :6], attention_mask=mask[:, :6], position_ids=places[:, :6], use_cache=True)
    found = run(
        model, ids[:, 6:], attention_mask=mask, position_ids=places[:, 6:], past_key_values=first.past_key_values
    ).logits
    alone = run(model, ids[2:, 3:]).logits
    torch.testing.assert_close(found[2:], alone[:, 3:], **CLOSE)


@pytest.mark.parametrize("head", LM_HEADS)
def test_a_cropped_a_copied_and_a_reset_cache(head):
    model = by_sequence(head)
    ids = inputs(head, padded=False)["input_ids"]
    cache = run(model, ids[:, :6], use_cache=True).past_key_values
    again = copy.deepcopy(cache)
    expected = run(model, ids[:, 6:], past_key_values=cache).logits
    cache.crop(-3)
    for held in (cache, again):
        assert held.get_seq_length() == 6
        torch.testing.assert_close(run(model, ids[:, 6:], past_key_values=held).logits, expected)
    cache.reset()
    torch.testing.assert_close(run(model, ids, past_key_values=cache).logits, run(model, ids).logits, **CLOSE)


def test_a_reordered_cache_takes_its_means_along():
    model = by_sequence("GPT2LMHeadModel")
    ids = inputs("GPT2LMHeadModel", padded=False)["input_ids"]
    order = torch.tensor([2, 0, 0])
    whole = run(model, torch.cat([ids[order, :6], ids[:, 6:]], dim=1)).logits[:, 6:]
    for cache in caches(model).values():
        run(model, ids[:, :6], past_key_values=cache, use_cache=True)
        cache.reorder_cache(order)
        found = run(model, ids[:, 6:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(found, whole, **CLOSE)


def test_decoder_with_cross_attention_and_a_cache():
    for head in LM_HEADS:
        dense = dense_model(head, add_cross_attention=True)
        model = vary_experts(upcycle(dense, route_by="sequence"))
        ids = inputs(head, padded=False)["input_ids"]
        encoded = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
        whole = run(model, ids, encoder_hidden_states=encoded).logits
        first = run(model, ids[:, :6], encoder_hidden_states=encoded, use_cache=True)
        found = run(model, ids[:, 6:], encoder_hidden_states=encoded, past_key_values=first.past_key_values).logits
        torch.testing.assert_close(found, whole[:, 6:], **CLOSE)


MODES = {
    "beam search": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "prefill in pieces": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def generate(model, batch, **options):
    return model.generate(**batch, max_new_tokens=8, pad_token_id=0, eos_token_id=None, **options)


@pytest.mark.parametrize("head", LM_HEADS)
@pytest.mark.parametrize("mode", MODES)
def test_generation_is_that_without_a_cache(head, mode):
    model = by_sequence(head)
    batch = {name: tensor.flip(-1) for name, tensor in inputs(head).items()}
    options = MODES[mode]
    if "prompt" in mode:
        batch = {name: tensor[-1:] for name, tensor in batch.items()}
    plain = {"num_beams": 3} if "beam" in mode else {}
    expected = generate(model, batch, use_cache=False, **plain)
    assert torch.equal(generate(model, batch, **options), expected)


def test_left_padded_generation_is_that_of_each_prompt_alone():
    model = by_sequence("GPT2LMHeadModel")
    batch = {name: tensor.flip(-1) for name, tensor in inputs("GPT2LMHeadModel").items()}
    found = generate(model, batch)[2, 9:]
    alone = generate(model, {"input_ids": batch["input_ids"][2:, 3:]})[0, 6:]
    assert torch.equal(found, alone)


def test_assisted_generation():
    model, assistant = by_sequence("GPT2LMHeadModel"), by_sequence("GPT2LMHeadModel", top_k=1)
    batch = {"input_ids": inputs("GPT2LMHeadModel", padded=False)["input_ids"][:1]}
    found = generate(model, batch, assistant_model=assistant)
    assert torch.equal(found, generate(model, batch))


def test_compiled_steps_with_a_static_cache():
    model = by_sequence("GPT2LMHeadModel", n_layer=1)
    model.set_experts_implementation("grouped_mm")
    ids = inputs("GPT2LMHeadModel", padded=False)["input_ids"]
    whole = run(model, ids, use_cache=False).logits
    cache = caches(model)["static"]
    run(model, ids[:, :6], past_key_values=cache, use_cache=True)
    torch._dynamo.reset()
    step = torch.compile(model, backend="aot_eager", fullgraph=True)
    for place in range(6, 9):
        found = run(step, ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(found[:, 0], whole[:, place], **CLOSE)
