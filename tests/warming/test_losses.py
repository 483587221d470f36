"""Router losses by layer and over the global batch."""

import pytest
import torch

from moeify.families.moe_layout import RouterRule
from moeify.routing.loaded import LoadedLayer, Routed
from moeify.warming.balances import BALANCES
from moeify.warming.losses import RouterSums, router_sums, z_loss

E, K, N = 8, 2, 64


def collapsed(layers: int = 4) -> list[torch.Tensor]:
    """Each layer sends everything to two experts of its own."""
    logits = []
    for layer in range(layers):
        one = torch.zeros(N, E)
        one[:, [2 * layer % E, 2 * layer % E + 1]] = 40.0
        logits.append(one)
    return logits


def even(layers: int = 4) -> list[torch.Tensor]:
    one = torch.zeros(N, E)
    for token in range(N):
        one[token, [2 * token % E, (2 * token + 1) % E]] = 40.0
    return [one] * layers


LAYER = LoadedLayer(
    number=0,
    block=None,
    router=None,
    chooser=None,
    experts=None,
    rule=RouterRule(),
    own_inputs=False,
    groups=None,
    top_k=K,
    bias=None,
)


def routed(logits: torch.Tensor) -> Routed:
    """What a layer does that takes the softmax of its best."""
    best, experts = logits.topk(K, dim=-1)
    weights = best.softmax(-1)
    return Routed(layer=LAYER, inputs=logits, logits=logits, weights=weights, experts=experts)


def sums(logits: list[torch.Tensor], mask: torch.Tensor | None = None) -> RouterSums:
    count = len(logits[0])
    return router_sums([*map(routed, logits)], torch.ones(count) if mask is None else mask)


def balance_loss(kind: str, found: RouterSums) -> torch.Tensor:
    return BALANCES[kind].formula(found)


def test_a_collapsed_four_layer_model_is_told_from_a_balanced_one():
    assert float(balance_loss("switch", sums(collapsed()))) == pytest.approx(8.0)
    assert float(balance_loss("switch", sums(even()))) == pytest.approx(2.0)
    assert float(balance_loss("cv2", sums(collapsed()))) == pytest.approx(3.0)
    assert float(balance_loss("cv2", sums(even()))) == pytest.approx(0.0, abs=1e-6)
    assert float(balance_loss("kl", sums(collapsed()))) == pytest.approx(1.3863, abs=1e-3)
    assert float(balance_loss("kl", sums(even()))) == pytest.approx(0.0, abs=1e-6)
    assert float(balance_loss("none", sums(collapsed()))) == 0.0


def test_padding_does_not_count():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(N, E, generator=generator) for _ in range(2)]
    mask = (torch.arange(N) < 40).float()
    kept = [layer[:40] for layer in logits]
    short = sums(kept)
    masked = sums(logits, mask)
    for kind in ("switch", "cv2", "kl"):
        assert float(balance_loss(kind, masked)) == pytest.approx(float(balance_loss(kind, short)))
    expected = torch.stack([k.logsumexp(-1).square().mean() for k in kept]).mean()
    assert float(z_loss(masked)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["switch", "cv2", "kl"])
def test_two_halves_with_shared_sums_have_the_gradient_of_the_whole(kind):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(N, 16, generator=generator)
    weight = torch.randn(E, 16, generator=generator, requires_grad=True)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, weight)[0]

    whole = gradient(balance_loss(kind, sums([tokens @ weight.T])))
    halves = []
    for number in (0, 1):
        parts = [sums([h @ weight.T]) for h in tokens.chunk(2)]
        total = parts[0].packed().detach() + parts[1].packed().detach()
        own = parts[number].packed()
        shared = RouterSums.unpacked(total + own - own.detach(), 1, E)
        halves.append(gradient(balance_loss(kind, shared)))
    torch.testing.assert_close(halves[0] + halves[1], whole)


@pytest.mark.parametrize("kind", ["switch", "cv2", "kl"])
def test_an_expert_without_tokens_leaves_gradients_finite(kind):
    logits = torch.randn(N, E, generator=torch.Generator().manual_seed(2))
    logits[:, 5] = -9.0
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(balance_loss(kind, sums([logits])), logits)
    assert slope.isfinite().all() and slope.any()
