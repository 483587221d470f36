"""The sums and figures, against loops over tokens in NumPy."""

import math

import numpy as np
import pytest
import torch

from moeify.routing.collection import RoutedTokens
from moeify.routing.statistics import RoutingStatistics

T, E, K, D = 500, 6, 2, 3


def routed(seed: int, count: int = T, skew: float = 1.0) -> RoutedTokens:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, E, generator=generator) * 1.5
    logits[:, 0] += skew
    logits[:, 5] -= 8 * skew
    chosen, experts = logits.topk(K, dim=-1)
    return RoutedTokens(
        layer=0,
        inputs=torch.zeros(count, 4),
        logits=logits,
        experts=experts,
        weights=chosen.softmax(-1),
        domains=torch.randint(D, (count,), generator=generator),
    )


@pytest.fixture(scope="module")
def batches() -> list[RoutedTokens]:
    return [routed(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def layer(batches):
    statistics = RoutingStatistics(D)
    for batch in batches:
        statistics(batch)
    return statistics.layers[0]


def tokens_of(batches):
    for batch in batches:
        yield from zip(
            batch.logits.double().numpy(),
            batch.experts.numpy(),
            batch.weights.double().numpy(),
            batch.domains.numpy(),
            strict=True,
        )


def test_counts_weights_and_pairs(batches, layer):
    n, mass, pairs = np.zeros(E), np.zeros(E), np.zeros((E, E))
    first = np.zeros((E, D))
    by_domain = np.zeros((E, D))
    for _, experts, weights, domain in tokens_of(batches):
        for expert, weight in zip(experts, weights, strict=True):
            n[expert] += 1
            mass[expert] += weight
            by_domain[expert, domain] += 1
            for other in experts:
                pairs[expert, other] += 1
        first[experts[0], domain] += 1
    assert layer.tokens == 3 * T
    np.testing.assert_array_equal(layer.tokens_per_expert, n)
    np.testing.assert_allclose(layer.gate_mass, mass, rtol=1e-6)
    np.testing.assert_array_equal(layer.pairs, pairs)
    np.testing.assert_array_equal(layer.per_domain, by_domain)
    np.testing.assert_array_equal(layer.first_per_domain, first)
    coactivation = pairs / np.maximum(n, 1)[:, None]
    np.fill_diagonal(coactivation, 0)
    np.testing.assert_allclose(layer.coactivation, coactivation, rtol=1e-6)
    np.testing.assert_allclose(layer.coactivation[n > 0].sum(1), K - 1, rtol=1e-6)


def test_evenness(batches, layer):
    n = np.zeros(E)
    for _, experts, _, _ in tokens_of(batches):
        for expert in experts:
            n[expert] += 1
    share = n / n.sum()
    assert layer.max_violation == pytest.approx(n.max() / n.mean() - 1, rel=1e-6)
    assert layer.load_cv == pytest.approx(n.std() / n.mean(), rel=1e-6)
    entropy = -sum(p * math.log(p) for p in share if p > 0) / math.log(E)
    assert layer.load_entropy == pytest.approx(entropy, rel=1e-6)
    assert layer.dead == tuple(np.flatnonzero(n < 0.1 * n.mean())) == (5,)
    assert layer.unused == tuple(np.flatnonzero(n == 0))


def test_decidedness(batches, layer):
    entropies, margins, z, p_sum = [], [], [], np.zeros(E)
    for logits, experts, _, _ in tokens_of(batches):
        p = np.exp(logits) / np.exp(logits).sum()
        p_sum += p
        entropies.append(-(p * np.log(p)).sum() / math.log(E))
        z.append(math.log(np.exp(logits).sum()) ** 2)
        rest = [logits[e] for e in range(E) if e not in experts]
        margins.append(min(logits[experts]) - max(rest))
    assert layer.entropy == pytest.approx(np.mean(entropies), rel=1e-6)
    assert layer.margin == pytest.approx(np.mean(margins), rel=1e-6)
    assert layer.z_sum / layer.tokens == pytest.approx(np.mean(z), rel=1e-6)
    f = layer.tokens_per_expert / layer.tokens
    assert layer.balance_loss == pytest.approx(E * (f * p_sum / len(z)).sum(), rel=1e-6)


def test_domains(batches, layer):
    pairs = [(e, d) for _, experts, _, d in tokens_of(batches) for e in experts]
    n_domain = np.bincount([d for *_, d in tokens_of(batches)], minlength=D)
    figures = layer.domains
    mutual = h_e = h_d = 0.0
    total = len(pairs)
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    p_e = {e: sum(c for (a, _), c in counts.items() if a == e) / total for e in range(E)}
    p_d = {d: sum(c for (_, b), c in counts.items() if b == d) / total for d in range(D)}
    for (e, d), c in counts.items():
        mutual += c / total * math.log(c / total / p_e[e] / p_d[d])
    h_e = -sum(p * math.log(p) for p in p_e.values() if p)
    h_d = -sum(p * math.log(p) for p in p_d.values() if p)
    assert figures.nmi == pytest.approx(2 * mutual / (h_e + h_d), rel=1e-6, abs=1e-9)
    assert figures.baseline == pytest.approx(K / E)
    for e in range(E):
        shares = [counts.get((e, d), 0) / n_domain[d] for d in range(D)]
        np.testing.assert_allclose(figures.specialization[e], shares, rtol=1e-6)
        own = int(np.argmax(shares))
        elsewhere = sum(counts.get((e, d), 0) for d in range(D) if d != own)
        if elsewhere:
            outside = elsewhere / (n_domain.sum() - n_domain[own])
            assert figures.enrichment[e] == pytest.approx(shares[own] / outside, rel=1e-6)


def test_one_expert_for_each_domain_is_seen_as_such():
    domains = torch.arange(300) % D
    logits = torch.nn.functional.one_hot(domains, E).float() * 5
    statistics = RoutingStatistics(D)
    experts = domains[:, None]
    weights = torch.ones(300, 1)
    inputs = torch.zeros(300, 1)
    statistics(RoutedTokens(layer=4, inputs=inputs, logits=logits, experts=experts, weights=weights, domains=domains))
    figures = statistics.layers[4].domains
    assert figures.nmi == pytest.approx(1.0)
    np.testing.assert_array_equal(figures.own_expert_fraction, np.ones(D))
    assert figures.own_domain[:D] == (0, 1, 2)
    assert statistics.layers[4].unused == (3, 4, 5)


def test_a_collapsed_layer_scores_e_and_an_even_one_k():
    collapsed, even = RoutingStatistics(), RoutingStatistics()
    count = 120
    for layer in range(4):
        logits = torch.zeros(count, 8)
        logits[:, [2 * layer, 2 * layer + 1]] += 40.0
        spread = torch.stack([torch.roll(torch.tensor([40.0, 40, 0, 0, 0, 0, 0, 0]), i % 8) for i in range(count)])
        for statistics, values in ((collapsed, logits), (even, spread)):
            top = values.topk(2, dim=-1)
            statistics(
                RoutedTokens(
                    layer=layer,
                    inputs=values,
                    logits=values,
                    experts=top.indices,
                    weights=top.values.softmax(-1),
                    domains=None,
                )
            )
    assert [s.balance_loss for s in collapsed.layers.values()] == pytest.approx([8.0] * 4)
    assert [s.balance_loss for s in even.layers.values()] == pytest.approx([2.0] * 4)
    assert collapsed.max_violation == pytest.approx(3.0)
    assert even.max_violation == pytest.approx(0.0)
