"""Routing inside slices, against every expert by hand; losses count each slice by itself."""

import pytest
import torch

from moeify.modeling.configuration_moe import config_class
from moeify.modeling.moe_layers import TopKRouting, balance_loss, z_loss
from tests.modeling.tiny_models import (
    HEADS,
    check_any_router,
    dense_model,
    inputs,
    relative_difference,
    tensors,
    upcycle,
    vary_experts,
)

LOGITS = torch.randn(50, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("top_k", [4, 8])
@pytest.mark.parametrize("norm", [True, False])
def test_each_slice_chooses_and_weighs_by_itself(top_k: int, norm: bool) -> None:
    _, weights, experts = TopKRouting(top_k, norm, slices=4)(LOGITS)
    assert weights.shape == experts.shape == (50, top_k)
    each = top_k // 4
    for part in range(4):
        inside = TopKRouting(each, norm)(LOGITS[:, part * 3 : part * 3 + 3])
        columns = slice(part * each, part * each + each)
        assert torch.equal(experts[:, columns], inside[2] + part * 3)
        assert torch.equal(weights[:, columns], inside[1])


def test_losses_are_those_of_the_slices() -> None:
    parts = LOGITS.float().chunk(4, dim=-1)
    one = [balance_loss(router_logits=[part], top_k=2) for part in parts]
    # K where all slices are even, as without slices.
    torch.testing.assert_close(balance_loss(router_logits=[LOGITS], top_k=8, slices=4), sum(one))
    even = torch.eye(12).repeat(5, 1) + torch.eye(3).repeat(20, 4)
    assert balance_loss(router_logits=[even], top_k=4, slices=4) == pytest.approx(4, rel=0.1)
    z = torch.stack([z_loss(router_logits=[part]) for part in parts]).mean()
    torch.testing.assert_close(z_loss(router_logits=[LOGITS], slices=4), z)


def test_one_slice_is_what_there_was_to_the_bit() -> None:
    for top_k in (1, 3):
        chosen, experts = LOGITS.topk(top_k, dim=-1)
        found = TopKRouting(top_k, norm_topk_prob=True)(LOGITS)
        assert torch.equal(found[2], experts)
        if top_k > 1:
            assert torch.equal(found[1], chosen.softmax(-1))


@pytest.mark.parametrize("slices", [0, 3, 8, "4", 2.0])
def test_slices_divide_experts_and_top_k(slices: object) -> None:
    with pytest.raises(ValueError, match="expert_slices must divide num_experts = 8"):
        config_class("bert")(num_experts=8, num_experts_per_tok=4, expert_slices=slices)


@pytest.mark.parametrize("head", HEADS)
def test_any_router_in_any_implementation_computes_the_dense_model(head: str) -> None:
    check_any_router(head, (4, 8), 3, slices=4)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
@torch.no_grad()
def test_a_model_of_one_slice_is_a_model_without_the_key(head: str) -> None:
    batch, dense = inputs(head, labels=True) | {"output_router_logits": True}, dense_model(head)
    torch.manual_seed(0)
    plain = vary_experts(upcycle(dense))
    torch.manual_seed(0)
    one = vary_experts(upcycle(dense, expert_slices=1))
    expected, found = plain(**batch), one(**batch)
    assert expected.aux_loss > 0
    assert all(torch.equal(found[name], value) for name, value in tensors(expected).items())


@pytest.mark.parametrize("head", ["BertForMaskedLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize("route_by", ["token", "sequence"])
@torch.no_grad()
def test_jitter_is_on_what_routers_read_in_training_alone(head: str, route_by: str) -> None:
    batch, dense = inputs(head), dense_model(head)
    model = upcycle(dense, num_experts=3, slices=2, route_by=route_by, router_jitter_noise=0.1)
    read: list[torch.Tensor] = []
    for module in model.modules():
        if getattr(module, "jitter", 0):
            module.router.register_forward_hook(lambda _, args, out: read.append(args[0]))
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = model(**batch)
    still = read[0]
    assert torch.equal(model(**batch).logits, expected.logits)
    assert relative_difference(dense(**batch), expected) <= 1e-6
    read.clear()
    trained = model.train()(**batch)
    ratios = read[0] / still
    assert (ratios - 1).abs().max() <= 0.1 + 1e-5
    assert 0.04 < (ratios - 1).std() < 0.08  # 0.1 / sqrt(3)
    assert relative_difference(expected, trained) <= 1e-6, "experts read what they read, and copies agree"
