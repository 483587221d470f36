"""Null experts: exact beside any router, what they give, and that everything of theirs learns."""

from typing import Any

import pytest
import torch

from moeify.modeling.configuration_moe import config_class
from moeify.modeling.moe_layers import balance_loss
from moeify.modeling.moe_routing import TopKRouting
from tests.modeling.tiny_models import (
    HEADS,
    LM_HEADS,
    check_any_router,
    dense_model,
    inputs,
    relative_difference,
    tensors,
    upcycle,
    vary_experts,
)

KINDS = {"null_experts": 4, "null_kinds": ["zero", "copy", "constant"]}  # two zeros
LOGITS = torch.randn(200, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)  # E = 5, Z = 4


def by_hand(logits: torch.Tensor, top_k: int, bias: torch.Tensor | None) -> tuple[dict[int, float], list[int]]:
    """Weights by number for one token, and what it chose."""
    selection = logits if bias is None else logits.softmax(-1) + torch.cat([bias, bias.new_zeros(4)])
    first = int(selection[:5].argmax())
    others = sorted((n for n in range(9) if n != first), key=lambda n: -float(selection[n]))
    chosen = [first, *others[: top_k - 1]]
    p = logits.softmax(-1)
    real, every = sum(p[n] for n in chosen if n < 5), sum(p[n] for n in chosen)
    return {n: float(p[n] / (real if n < 5 else every)) for n in chosen}, chosen


@pytest.mark.parametrize("top_k", [2, 3, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_the_first_choice_is_an_expert_and_weights_are_those_of_experts(top_k: int, biased: bool) -> None:
    routing = TopKRouting(top_k, True, biased=5 if biased else 0, nulls=4)
    bias = None
    if biased:
        bias = torch.linspace(-0.3, 0.3, 5)
        routing.e_score_correction_bias.copy_(bias)
    _, weights, chosen = routing(LOGITS)
    for token, logits in enumerate(LOGITS):
        wanted, order = by_hand(logits, top_k, bias)
        assert chosen[token].tolist() == order
        found = dict(zip(order, weights[token].tolist(), strict=True))
        assert found == pytest.approx(wanted)
    visited = (chosen < 5).sum(-1)
    assert visited.min() < top_k and (chosen[:, 1] < 5).any()  # with null ones and without


@pytest.mark.parametrize("top_k", [2, 3])
def test_null_rows_learn_what_further_experts_change_of_the_first(top_k: int) -> None:
    """The gradient is that of a gate on the difference, with the probability of further experts beside null ones."""
    logits = LOGITS.clone().requires_grad_()
    values = torch.randn(5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)  # what experts give
    _, weights, chosen = TopKRouting(top_k, True, nulls=4)(logits)
    real = chosen < 5
    (weights * real * values[chosen.clamp(max=4)]).sum().backward()
    for token, order in enumerate(chosen.tolist()):
        given = {n: w for n, w in zip(order, weights[token].tolist(), strict=True) if n < 5}
        change = sum(w * float(values[n]) for n, w in given.items()) - float(values[order[0]])
        null = LOGITS[token, 5:].logsumexp(-1)
        spent = LOGITS[token, order[1:]].masked_fill(~real[token, 1:], float("-inf")).logsumexp(-1)
        wanted = -change * (null - spent).sigmoid() * LOGITS[token, 5:].softmax(-1)
        torch.testing.assert_close(logits.grad[token, 5:], wanted)
    assert logits.grad[real[:, 1:].any(-1), 5:].abs().sum(-1).min() > 0
    assert logits.grad[~real[:, 1:].any(-1), 5:].abs().max() == 0  # it is not known what others would have given


def test_a_size_of_the_output_teaches_null_rows_nothing() -> None:
    """Experts that give the same leave nothing to choose: weights sum to 1 on every path of the gradient."""
    logits = LOGITS.clone().requires_grad_()
    _, weights, chosen = TopKRouting(3, True, nulls=4)(logits)
    (weights * (chosen < 5)).sum().backward()
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("head", HEADS)
def test_any_router_in_any_implementation_computes_the_dense_model(head: str) -> None:
    check_any_router(head, (2, 3), 6, **KINDS)


@pytest.mark.parametrize("head", LM_HEADS)
def test_all_that_is_theirs_moves_and_is_computed_the_same_everywhere(head: str) -> None:
    """After a few steps alpha, v and every row differ; then implementations, compiled code and caches agree."""
    torch.manual_seed(0)
    model = vary_experts(upcycle(dense_model(head), **KINDS)).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".nulls." in name}
    assert {name.rpartition(".nulls.")[2] for name in before} == {"router.weight", "scale", "constant"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(6):
        model(**inputs(head, labels=True, seed=seed), output_router_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, old in before.items():
        assert ((model.get_parameter(name) - old).flatten(1 if old.ndim > 1 else 0).abs() > 0).any(-1).all(), name
    model.eval()
    batch = inputs(head)
    with torch.no_grad():
        expected = model(**batch, output_router_logits=True)
        assert expected.router_logits[0].shape == (27, 8)
        for implementation in ("batched_mm", "grouped_mm"):
            model.set_experts_implementation(implementation)
            assert relative_difference(expected, model(**batch, output_router_logits=True)) <= 1e-5
        model.set_experts_implementation("eager")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert relative_difference(model(**batch), compiled(**batch)) <= 1e-5
    prompt = {name: tensor.flip(-1) for name, tensor in batch.items()} | {"max_new_tokens": 8, "pad_token_id": 0}
    cached, plain = (model.generate(**prompt, use_cache=cache, eos_token_id=None) for cache in (True, False))
    assert torch.equal(cached, plain)


@torch.no_grad()
def test_what_they_give(head: str = "GPT2Model") -> None:
    """alpha x and v, with the weight that they have among all choices."""
    model = vary_experts(upcycle(dense_model(head), num_experts=5, top_k=3, moe_layers=[1], **KINDS))
    block = model.h[1].mlp
    tokens = torch.randn(40, 32)
    found, logits = block(tokens[None])[0], torch.cat([block.router(tokens), block.nulls(tokens)], -1)
    for token, output, row in zip(tokens, found, logits, strict=True):
        total = torch.zeros(32)
        for number, weight in by_hand(row, 3, None)[0].items():
            if number < 5:
                one = block.experts(token[None], torch.tensor([[number]]), torch.ones(1, 1))[0]
                total += weight * one
            elif number == 7:  # behind two zeros
                total += weight * block.nulls.scale[0] * token
            elif number == 8:
                total += weight * block.nulls.constant[0]
        torch.testing.assert_close(output, total, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
@torch.no_grad()
def test_losses_count_experts_among_one_another(head: str) -> None:
    model = upcycle(dense_model(head), moe_layers=[1], **KINDS)
    batch = inputs(head, padded=False, labels=True)
    found = model(**batch, output_router_logits=True)
    (logits,) = found.router_logits
    chosen = next(m for m in model.modules() if isinstance(m, TopKRouting))(logits)[2]
    load = torch.stack([(chosen == e).any(-1).float().mean() for e in range(4)])
    torch.testing.assert_close(found.aux_loss, 4 * (load * logits[:, :4].softmax(-1).mean(0)).sum())
    assert load.sum() < 2
    alone = balance_loss(router_logits=[logits[:, :4]], top_k=2)
    assert not torch.isclose(found.aux_loss, alone)  # which would count two experts for every token


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
@torch.no_grad()
def test_models_without_the_keys_are_what_they_were_to_the_bit(head: str) -> None:
    batch, dense = inputs(head, labels=True) | {"output_router_logits": True}, dense_model(head)
    found: list[dict[str, Any]] = []
    for keys in ({}, {"null_experts": 0, "null_kinds": ["copy"], "router_bias": False}):
        torch.manual_seed(0)
        model = vary_experts(upcycle(dense, **keys))
        assert not [name for name in model.state_dict() if "null" in name or "correction" in name]
        found.append(tensors(model(**batch)))
    assert found[0]["aux_loss"] > 0
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"null_experts": -1}, "whole number of at least 0, not -1"),
        ({"null_experts": 2, "null_kinds": ["nothing"]}, "must list 'zero', 'copy' or 'constant'"),
        ({"null_experts": 2, "null_kinds": []}, "must list"),
        ({"null_experts": 2, "num_experts_per_tok": 1}, "need num_experts_per_tok of 2 or more"),
        ({"null_experts": 2, "expert_slices": 2}, "expert_slices = 1"),
        ({"null_experts": 2, "norm_topk_prob": False}, "norm_topk_prob = true only"),
    ],
)
def test_what_no_class_can_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class("bert")(num_experts=8, **{"num_experts_per_tok": 2, **keys})
