"""Router, experts and losses on their own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moeify.modeling.moe_experts import Outline, every_expert, experts_like
from moeify.modeling.moe_layers import (
    MoeFeedForward,
    Router,
    TopKRouting,
    balance_loss,
    default_experts_implementation,
    token_mask,
    z_loss,
)

H, F, E = 12, 20, 5
COLLAPSED = [torch.full((16, 8), -40.0) for _ in range(4)]
for number, logits in enumerate(COLLAPSED):
    logits[:, [2 * number, 2 * number + 1]] = 40.0


KINDS = {
    "plain": {},
    "transposed": {"is_transposed": True},
    "without biases": {"biased": False},
    "gated": {"gated": True, "biased": False},
    "gated in one product": {"gated": True, "joined": True},
    "gated, transposed": {"gated": True, "is_transposed": True},
}
BY_KIND = pytest.mark.parametrize("kind", KINDS)


def config_of(implementation="eager", top_k=2):
    return SimpleNamespace(
        num_experts=E,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        router_jitter_noise=0.0,
        router_bias=False,
        null_experts=0,
        _experts_implementation=implementation,
    )


def outline_of(kind):
    return Outline(hidden_size=H, ffn_size=F, activation=nn.functional.gelu, **KINDS[kind])


def make_experts(kind, implementation="eager"):
    experts = experts_like(outline_of(kind), config_of(implementation))
    torch.manual_seed(0)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def reference(experts, tokens, chosen, weights):
    """Token by token, expert by expert."""
    results = []
    first, first_bias = experts.up
    for token, numbers, scales in zip(tokens, chosen, weights, strict=True):
        total = torch.zeros(H)
        for e, scale in zip(numbers.tolist(), scales, strict=True):
            up, down = first[e], experts.down_proj[e]
            if experts.is_transposed:
                up, down = up.T, down.T
            inner = up @ token + (0 if first_bias is None else first_bias[e])
            inner = nn.functional.gelu(inner[:F]) * inner[F:] if experts.has_gate else nn.functional.gelu(inner)
            bias = 0 if experts.down_proj_bias is None else experts.down_proj_bias[e]
            total = total + scale * (down @ inner + bias)
        results.append(total)
    return torch.stack(results)


@BY_KIND
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_experts_and_their_gradients(kind, implementation, top_k):
    experts = make_experts(kind, implementation)
    torch.manual_seed(1)
    tokens = torch.randn(17, H, requires_grad=True)
    weights, chosen = torch.randn(17, E).softmax(-1).topk(top_k)
    weights.requires_grad_()
    leaves = [tokens, weights, *experts.parameters()]
    expected = reference(experts, tokens, chosen, weights)
    found = experts(tokens, chosen, weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@BY_KIND
def test_grouped_products_of_widths_that_torch_refuses(kind):
    """Rows of 24 and 40 bytes are no multiples of 16."""
    grouped, eager = (make_experts(kind, name).bfloat16() for name in ("grouped_mm", "eager"))
    tokens = torch.randn(17, H).bfloat16()
    weights, chosen = torch.randn(17, E).softmax(-1).bfloat16().topk(2)
    assert torch.equal(grouped(tokens, chosen, weights), eager(tokens, chosen, weights))


@BY_KIND
def test_every_expert_gives_what_the_chosen_give(kind):
    experts = make_experts(kind)
    tokens, (weights, chosen) = torch.randn(17, H), torch.randn(17, E).softmax(-1).topk(2)
    expected = reference(experts, tokens, chosen, weights)
    found = every_expert(experts, tokens, chosen, weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_experts_of_other_processes_give_nothing():
    experts = make_experts("plain")
    tokens, weights = torch.randn(3, H), torch.full((3, 2), 0.5)
    chosen = torch.tensor([[0, E], [E, E], [4, 1]])
    expected = reference(experts, tokens, chosen.clamp(max=E - 1), weights * (chosen < E))
    torch.testing.assert_close(experts(tokens, chosen, weights), expected, atol=1e-5, rtol=1e-5)


def test_experts_take_an_empty_batch():
    experts = make_experts("plain")
    chosen, weights = torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2)
    assert experts(torch.zeros(0, H), chosen, weights).shape == (0, H)


def test_weights_sum_to_one_or_are_the_probabilities():
    logits = torch.randn(50, E)
    probabilities = logits.softmax(-1)
    recorded, weights, chosen = TopKRouting(2, True)(logits)
    assert recorded is logits
    expected = probabilities.gather(-1, chosen)
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True))
    _, raw, same = TopKRouting(2, False)(logits)
    assert torch.equal(same, chosen)
    torch.testing.assert_close(raw, expected)


def test_top_1_weight_is_one_and_has_a_gradient():
    logits = torch.randn(50, E, requires_grad=True)
    _, weights, chosen = TopKRouting(1, True)(logits)
    assert torch.equal(weights, torch.ones(50, 1))
    (gradient,) = torch.autograd.grad(weights.sum(), logits)
    one_hot = nn.functional.one_hot(chosen[:, 0], E)
    # d (p / stopgrad p) = d log p
    torch.testing.assert_close(gradient, one_hot - logits.softmax(-1).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_router_computes_in_float32(dtype):
    router = Router(H, E).to(dtype)
    tokens = torch.randn(7, H, dtype=dtype)
    expected = tokens.float() @ router.weight.detach().float().T
    assert router(tokens).dtype == torch.float32
    torch.testing.assert_close(router(tokens), expected)
    assert router.double()(tokens.double()).dtype == torch.float64


def test_feed_forward_keeps_shape_and_dtype():
    moe = MoeFeedForward(config_of(), outline_of("plain")).to(torch.bfloat16)
    output = moe(torch.randn(2, 3, H, dtype=torch.bfloat16))
    assert output.shape == (2, 3, H)
    assert output.dtype == torch.bfloat16
    names = {name for name, _ in moe.named_parameters()}
    assert names == {"router.weight"} | {
        f"experts.{name}" for name in ("up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
    }


def test_balance_loss_tells_a_collapsed_model_from_a_balanced_one():
    assert balance_loss(router_logits=COLLAPSED, top_k=2).item() == pytest.approx(8.0)
    # Each expert is in the top 2 of a quarter of the tokens, and nearly uniform otherwise.
    balanced = torch.zeros(16, 8)
    for token in range(16):
        balanced[token, [(2 * token) % 8, (2 * token + 1) % 8]] = 1e-4
    found = balance_loss(router_logits=[balanced] * 4, top_k=2)
    assert found.item() == pytest.approx(2.0)


def test_losses_leave_padding_out():
    torch.manual_seed(0)
    layers = [torch.randn(12, E) for _ in range(2)]
    mask = torch.tensor([1, 1, 0] * 4)
    kept = [logits[mask.bool()] for logits in layers]
    found = balance_loss(router_logits=layers, top_k=2, mask=mask)
    torch.testing.assert_close(found, balance_loss(router_logits=kept, top_k=2))
    torch.testing.assert_close(z_loss(router_logits=layers, mask=mask), z_loss(router_logits=kept))
    assert balance_loss(router_logits=layers, top_k=2, mask=torch.zeros(12)) == 0


def test_z_loss_value():
    # logsumexp of 4 zeros is ln 4, of 4 ones 1 + ln 4
    ln4 = torch.tensor(4.0).log()
    expected = (ln4**2 + (1 + ln4) ** 2) / 2
    found = z_loss(router_logits=[torch.zeros(3, 4), torch.ones(3, 4)])
    torch.testing.assert_close(found, expected)


def test_losses_pull_towards_balance():
    logits = torch.tensor([[2.0, 0.0, 0.0]] * 6, requires_grad=True)
    balance_loss(router_logits=[logits], top_k=1).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_losses_need_a_layer():
    with pytest.raises(ValueError, match="router_logits is empty"):
        balance_loss(router_logits=[], top_k=1)


def test_token_mask():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(token_mask(mask, 6), mask.flatten())
    # With a cache, only the last column belongs to this pass.
    assert torch.equal(token_mask(mask, 2), torch.tensor([0, 0]))
    assert torch.equal(token_mask(mask.view(1, 2, 3), 6), mask.flatten())
    assert token_mask(None, 6) is None
    assert token_mask(mask, 7) is None
    assert token_mask(torch.zeros(2, 1, 3, 3), 6) is None


def test_the_requested_implementation_wins():
    assert default_experts_implementation("batched_mm") == "batched_mm"
    expected = "grouped_mm" if torch.accelerator.is_available() else "eager"
    assert default_experts_implementation(None) == expected
