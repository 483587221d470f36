"""One decision for a whole sequence: what it depends on, and what it must not depend on."""

import pytest
import torch
from transformers import DynamicCache

from moeify.modeling.moe_layers import TopKRouting
from moeify.modeling.moe_pooling import SequencePool, what_is_pooled
from tests.modeling.sequence_models import CLOSE, by_sequence, run
from tests.modeling.tiny_models import (
    HEADS,
    LM_HEADS,
    VOCABULARY,
    dense_model,
    inputs,
    is_bert,
    relative_difference,
    set_top_k,
    tensors,
    upcycle,
)


@pytest.mark.parametrize("head", HEADS)
def test_copies_compute_the_dense_function(head):
    dense = dense_model(head)
    labels = head not in ("BertModel", "GPT2Model")
    model = by_sequence(head, vary=False)
    expected = run(dense, **inputs(head, labels=labels))
    for top_k in (1, 2, 4):
        found = run(set_top_k(model, top_k), **inputs(head, labels=labels))
        assert relative_difference(expected, found) <= 1e-6, top_k


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_experts_implementation_agrees(head, implementation):
    model = by_sequence(head)
    model.set_experts_implementation("eager")
    expected = run(model, **inputs(head)).logits
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(run(model, **inputs(head)).logits, expected, **CLOSE)


@pytest.mark.parametrize("head", ["BertModel", "BertForMultipleChoice"])
def test_an_encoder_decides_once_for_each_sequence(head):
    model = by_sequence(head)
    found = run(model, **inputs(head), output_router_logits=True)
    sequences = 6 if "Choice" in head else 3
    for logits in found.router_logits:
        rows = logits.view(sequences, 9, 4)
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert not torch.equal(rows[0, 0], rows[1, 0])


def test_an_encoder_reads_the_mean_of_the_real_tokens():
    model = by_sequence("BertModel")
    batch = inputs("BertModel")
    seen = {}
    layer = model.encoder.layer[1].intermediate
    layer.register_forward_pre_hook(lambda _, args: seen.update(hidden=args[0]))
    layer.router.register_forward_hook(lambda _, args, out: seen.update(pooled=args[0]))
    run(model, **batch)
    for row, length in enumerate((9, 9, 6)):
        torch.testing.assert_close(seen["pooled"][row], seen["hidden"][row, :length].mean(0))


def test_a_decoder_reads_the_mean_of_the_tokens_so_far():
    model = by_sequence("GPT2Model")
    batch = {n: t.flip(-1) for n, t in inputs("GPT2Model").items()}
    seen = {}
    layer = model.h[1].mlp
    layer.register_forward_pre_hook(lambda _, args: seen.update(hidden=args[0]))
    layer.router.register_forward_hook(lambda _, args, out: seen.update(pooled=args[0]))
    run(model, **batch)
    pooled = seen["pooled"].view(3, 9, -1)
    for place in range(3, 9):
        expected = seen["hidden"][2, 3 : place + 1].mean(0)  # three tokens of padding on the left
        torch.testing.assert_close(pooled[2, place], expected)
        torch.testing.assert_close(pooled[0, place], seen["hidden"][0, : place + 1].mean(0))


@pytest.mark.parametrize("head", LM_HEADS)
def test_later_tokens_change_nothing_before_them(head):
    model = by_sequence(head)
    ids = inputs(head, padded=False)["input_ids"]
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % VOCABULARY
    before, after = run(model, ids).logits, run(model, changed).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_a_token_changes_the_route_of_its_whole_sequence_and_of_no_other():
    model = by_sequence("BertForMaskedLM")
    ids = inputs("BertForMaskedLM", padded=False)["input_ids"]
    before = run(model, ids, output_router_logits=True).router_logits[0].view(3, 9, 4)
    ids[0, 8] = (ids[0, 8] + 7) % VOCABULARY
    after = run(model, ids, output_router_logits=True).router_logits[0].view(3, 9, 4)
    assert not (before[0] == after[0]).any()
    assert torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("head", [h for h in HEADS if h not in LM_HEADS and is_bert(h)])
def test_padding_on_either_side_changes_no_encoder(head):
    model = by_sequence(head)
    batch = inputs(head)
    whole = run(model, **batch)
    name = "last_hidden_state" if head == "BertModel" else next(iter(tensors(whole)))
    for row, length in enumerate((9, 9, 6)):
        alone = run(model, batch["input_ids"][row : row + 1, ..., :length])[name]
        found = whole[name][row : row + 1]
        if found.ndim > 2 or "QuestionAnswering" in head:
            found = found[:, :length]
        torch.testing.assert_close(found, alone, **CLOSE)


def test_left_padding_of_an_encoder():
    model = by_sequence("BertModel")
    ids = inputs("BertModel", padded=False)["input_ids"]
    padded = torch.nn.functional.pad(ids, (4, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (4, 0))
    places = torch.nn.functional.pad(torch.arange(9), (4, 0)).expand(3, -1)
    found = run(model, padded, mask, position_ids=places).last_hidden_state[:, 4:]
    torch.testing.assert_close(found, run(model, ids).last_hidden_state, **CLOSE)


@pytest.mark.parametrize("head", ["GPT2LMHeadModel", "GPT2DoubleHeadsModel"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_decoder(head, side):
    model = by_sequence(head)
    ids = inputs(head, padded=False)["input_ids"]
    pads = (4, 0) if side == "left" else (0, 4)
    padded = torch.nn.functional.pad(ids, pads)
    mask = torch.nn.functional.pad(torch.ones_like(ids), pads)
    places = torch.nn.functional.pad(torch.arange(9), pads).expand_as(padded)
    found = run(model, padded, attention_mask=mask, position_ids=places.flatten(0, -2)).logits
    found = found[..., 4:, :] if side == "left" else found[..., :9, :]
    torch.testing.assert_close(found, run(model, ids).logits, **CLOSE)


def test_a_mask_given_by_place_counts():
    model = by_sequence("BertModel")
    batch = inputs("BertModel")
    named = run(model, **batch).last_hidden_state
    assert torch.equal(run(model, *batch.values()).last_hidden_state, named)
    assert not torch.equal(run(model, batch["input_ids"]).last_hidden_state[:2], named)


def test_packed_sequences_are_apart():
    model = by_sequence("GPT2LMHeadModel")
    ids = inputs("GPT2LMHeadModel", padded=False)["input_ids"]
    places = torch.cat([torch.arange(9), torch.arange(5), torch.arange(9)])[None]
    packed = torch.cat([ids[0], ids[1, :5], ids[2]])[None]
    found = run(model, packed, position_ids=places, use_cache=False).logits[0]
    alone = [run(model, row[None]).logits[0] for row in (ids[0], ids[1, :5], ids[2])]
    torch.testing.assert_close(found, torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_gradients_with_and_without_checkpointing(head):
    gradients = []
    for checkpointing in (False, True):
        model = by_sequence(head).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs(head, labels=True), output_router_logits=True, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if "router" in n})
    assert all(grad.abs().max() > 0 for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_the_balance_loss_counts_tokens(head):
    model = by_sequence(head)
    batch = inputs(head, labels=True)
    found = run(model, **batch, output_router_logits=True)
    real = batch["attention_mask"].flatten().bool()
    losses = []
    for logits in found.router_logits:
        kept = logits[real]
        load = torch.zeros_like(kept).scatter(1, kept.topk(2).indices, 1.0).mean(0)
        losses.append(4 * (load * kept.softmax(-1).mean(0)).sum())
    torch.testing.assert_close(found.aux_loss, torch.stack(losses).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pools_in_float32(dtype):
    model = by_sequence("GPT2LMHeadModel").to(dtype)
    read = []
    model.transformer.h[0].mlp.router.register_forward_hook(lambda _, a, o: read.append(a[0].dtype))
    assert run(model, **inputs("GPT2LMHeadModel")).logits.dtype == dtype
    assert read == [torch.float32]


def test_a_compiled_encoder_computes_the_same():
    model = by_sequence("BertForMaskedLM", num_hidden_layers=1)
    model.set_experts_implementation("grouped_mm")
    batch = inputs("BertForMaskedLM")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, **batch).logits, run(model, **batch).logits, **CLOSE)


def test_a_model_without_the_key_routes_tokens():
    model = upcycle(dense_model("GPT2LMHeadModel"))
    assert model.config.route_by == "token"
    assert all(block.mlp.pool is None for block in model.transformer.h)


def test_a_mask_that_does_not_name_the_tokens_is_refused_unless_another_does():
    model = by_sequence("GPT2LMHeadModel")
    batch = inputs("GPT2LMHeadModel")
    full = torch.ones(3, 1, 9, 9).tril().bool() & batch["attention_mask"][:, None, None].bool()
    with pytest.raises(ValueError, match=r"needs an attention mask of shape \[B, S\]"):
        run(model, batch["input_ids"], attention_mask=full)
    found = run(model, batch["input_ids"], attention_mask=full, router_mask=batch["attention_mask"]).logits
    expected = run(model, **batch).logits
    torch.testing.assert_close(found[:2], expected[:2], **CLOSE)


def test_a_mask_of_another_batch_is_refused():
    pool = SequencePool(causal=False, layer=0, num_layers=1)
    with pytest.raises(ValueError, match=r"\(2, 5\) does not fit 3 sequences of 5 tokens"):
        pool(torch.zeros(3, 5, 4), mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="does not fit"):
        pool(torch.zeros(3, 5, 4), mask=torch.ones(3, 4))


def test_foreign_and_offloaded_caches_are_refused():
    ids = inputs("GPT2LMHeadModel", padded=False)["input_ids"]
    foreign = run(upcycle(dense_model("GPT2LMHeadModel")), ids, use_cache=True).past_key_values
    model = by_sequence("GPT2LMHeadModel")
    with pytest.raises(ValueError, match="holds 9 tokens of attention and 0 of the router's mean"):
        run(model, ids, past_key_values=foreign)
    cache = DynamicCache(config=model.config)
    cache.offloading, cache.update = True, DynamicCache().update
    with pytest.raises(ValueError, match="offloaded cache"):
        run(model, ids, past_key_values=cache)
    with pytest.raises(ValueError, match="Continuous batching"):
        run(model, ids, cache=object())


def test_all_before_the_first_real_token_is_zero():
    pool = SequencePool(causal=True, layer=0, num_layers=1)
    hidden = torch.ones(1, 4, 2)
    found = pool(hidden, mask=torch.tensor([[0, 0, 1, 1]]))
    assert torch.equal(found, torch.tensor([[0.0, 0], [0, 0], [1, 1], [1, 1]]))
    nothing = SequencePool(causal=False, layer=0, num_layers=1)(hidden, mask=torch.zeros(1, 4))
    assert torch.equal(nothing, torch.zeros(1, 2))


def test_routing_modules_are_where_they_were():
    model = by_sequence("BertModel")
    assert sum(isinstance(module, TopKRouting) for module in model.modules()) == 3
    token = upcycle(dense_model("BertModel"))
    assert model.state_dict().keys() == token.state_dict().keys()


def test_packed_sequences_of_an_encoder_have_means_of_their_own():
    """As vLLM lays them into one row; how they attend is the backend's affair."""
    pool = SequencePool(causal=False, layer=0, num_layers=1)
    one, two, three = (torch.randn(1, length, 5) for length in (9, 5, 2))
    places = torch.cat([torch.arange(9), torch.arange(2, 7), torch.arange(2)])[None]
    mask, starts = what_is_pooled({"position_ids": places})
    found = pool(torch.cat([one, two, three], 1), mask=mask, starts=starts)
    wanted = torch.cat([pool(part).expand(part.shape[1], -1) for part in (one, two, three)])
    torch.testing.assert_close(found, wanted)
    assert found.shape == (16, 5)
