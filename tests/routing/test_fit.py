"""Routers set from inputs: even, of the wanted entropy, and true to domains."""

import pytest
import torch
from torch.nn.functional import one_hot

from moeify.routing.clustering import balanced_kmeans, even_offsets
from moeify.routing.fit import domain_router, kmeans_router, label_router, mean_entropy

H, E, K = 48, 8, 2


def inputs(seed: int, count: int = 3000, groups: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Anisotropic tokens with a large common component, in groups of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(99)
    centres = torch.randn(groups, H, generator=shared)
    common = 6 * torch.randn(H, generator=shared)
    sizes = torch.arange(1, groups + 1).float()
    members = torch.multinomial(sizes, count, replacement=True, generator=generator)
    return common + centres[members] + 0.7 * torch.randn(count, H, generator=generator), members


def max_violation(rows: torch.Tensor, tokens: torch.Tensor) -> float:
    counts = torch.bincount((tokens @ rows.T).topk(K).indices.flatten(), minlength=len(rows))
    return float(counts.max() / counts.float().mean() - 1)


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_routers_are_even_on_held_out_tokens_where_random_ones_are_not(seed):
    fit, held_out = inputs(seed)[0], inputs(seed + 100)[0]
    rows = kmeans_router(fit, E, K, entropy=0.92, seed=seed)
    assert max_violation(rows, fit) < 0.02
    assert max_violation(rows, held_out) < 0.2
    assert mean_entropy(held_out @ rows.T) == pytest.approx(0.92, abs=0.01)
    random = 0.02 * torch.randn(E, H, generator=torch.Generator().manual_seed(seed))
    assert max_violation(random, held_out) > 0.7


@pytest.mark.parametrize("entropy", [0.5, 0.85, 0.95])
def test_the_entropy_is_the_one_that_was_asked_for(entropy):
    fit = inputs(1)[0]
    rows = kmeans_router(fit, E, K, entropy=entropy, seed=0)
    assert mean_entropy(fit @ rows.T) == pytest.approx(entropy, abs=0.01)
    assert max_violation(rows, fit) < 0.02


def test_clusters_are_of_equal_size_and_follow_the_groups():
    tokens, members = inputs(3, groups=4)
    centred = tokens - tokens.mean(0)
    centres = balanced_kmeans(centred, 4, seed=0)
    torch.testing.assert_close(centres.norm(dim=-1), torch.ones(4))
    assigned = (centred @ centres.T).argmax(-1)
    joint = one_hot(assigned, 4).T.float() @ one_hot(members, 4).float()
    assert joint.max(0).values.sum() / len(tokens) > 0.5


def test_even_offsets_even_out_any_scores():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4000, E, generator=generator) + 3 * torch.arange(E)
    for top_k in (1, 2, 4):
        offsets = even_offsets(scores, top_k=top_k, rounds=200)
        chosen = (scores + offsets).topk(top_k).indices.flatten()
        load = torch.bincount(chosen, minlength=E) / len(chosen) * E
        assert load.max() < 1.05
        assert load.min() > 0.95


@pytest.mark.parametrize("num_experts", [3, 6, 7])
def test_domain_routers_send_each_domain_to_experts_of_its_own(num_experts):
    fit, members = inputs(0)
    held_out, other = inputs(7)
    domains, others = members % 3, other % 3
    rows = domain_router(fit, domains, num_experts, K, entropy=0.9, seed=0)
    best = (held_out @ rows.T).argmax(-1)
    joint = one_hot(best, num_experts).T.float() @ one_hot(others, 3).float()
    assert joint.max(1).values.sum() / len(held_out) > 0.97
    assert mean_entropy(fit @ rows.T) == pytest.approx(0.9, abs=0.02)


def test_label_routers_are_as_sure_as_they_are_right():
    fit, members = inputs(0)
    held_out, other = inputs(7)
    noise = torch.Generator().manual_seed(3)
    blurred, unseen = (t + 4 * torch.randn(t.shape, generator=noise) for t in (fit, held_out))
    for near, far, low, high in ((fit, held_out, 0.97, 1.0), (blurred, unseen, 0.6, 0.95)):
        rows = label_router(near, members % 3, owners=[2, 0, 1], seed=0)
        p, owner = (far @ rows.T).softmax(-1).max(-1)
        right = (torch.tensor([2, 0, 1])[owner] == other % 3).float().mean()
        assert low < right <= high
        assert float(p.mean()) == pytest.approx(float(right), abs=0.05)


def test_an_expert_without_a_partner_and_two_that_share_a_label():
    fit, members = inputs(0)
    rows = label_router(fit, members % 2, owners=[0, 1, 0], seed=0, entropy=0.5)
    assert mean_entropy(fit @ rows.T) == pytest.approx(0.5, abs=0.01)
    best = (fit @ rows.T).argmax(-1)
    assert ((best == 1) == (members % 2 == 1)).float().mean() > 0.97
    assert (best == 0).sum() > 100
    assert (best == 2).sum() > 100


def test_tokens_against_a_label_leave_its_expert():
    fit, members = inputs(0)
    labelled = members < 8
    few = label_router(fit[labelled], members[labelled] % 2, owners=[0, 1], seed=0)
    against = ~labelled & (members % 2 == 0)
    known = labelled | against
    domains = torch.where(against, 0, members % 2)[known]
    more = label_router(fit[known], domains, owners=[0, 1], seed=0, negatives=against[known])
    at_zero = [float(((fit[against] @ rows.T).argmax(-1) == 0).float().mean()) for rows in (few, more)]
    assert at_zero[1] < 0.05 < at_zero[0]


def test_the_same_seed_gives_the_same_rows_and_sample_size_bounds_the_work():
    fit = inputs(0)[0]
    first, again, other = (kmeans_router(fit, E, K, entropy=0.92, seed=s) for s in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


def test_constant_inputs_give_finite_rows():
    rows = kmeans_router(torch.ones(64, H), E, K, entropy=0.92, seed=0)
    assert torch.isfinite(rows).all()
