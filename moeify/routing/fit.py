"""Routers set from their inputs without a backward pass: clusters or domains, evenly loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moeify.routing.clustering import balanced_kmeans, even_offsets

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["domain_router", "joining_row", "kmeans_router", "mean_entropy", "prompt_router"]

_SAMPLE = 4096
_SAMPLE_PER_EXPERT = 64
_RIDGE = 1e-2
_LABEL_ROUNDS = 30
_BISECTIONS = 30
_JOIN_ROUNDS = 100
_JOIN_PENALTY = 1e-4  # keeps the size finite where the tokens can be told apart without error


def kmeans_router(
    inputs: Tensor, num_experts: int, top_k: int, *, entropy: float, seed: int
) -> Tensor:
    """Router rows [E, H] whose experts are clusters of the centred ``inputs`` [T, H], float32.

    Clusters are found on a sample (4096 tokens, or 64 for each expert), so that the time does not
    grow with the text; loads are made even over all ``inputs``. Cluster-aware upcycling:
    arXiv 2604.13508.
    """
    import torch

    mean = inputs.mean(0)
    generator = torch.Generator().manual_seed(seed)
    wanted = max(_SAMPLE, _SAMPLE_PER_EXPERT * num_experts)
    sample = inputs[torch.randperm(len(inputs), generator=generator)[:wanted]] - mean
    rows = balanced_kmeans(sample, num_experts, seed)
    # The inputs' mean is nearly the same in every token: along it a row has a bias.
    steady = mean / mean.square().sum().clamp_min(1e-12)
    return _finished(inputs, rows, mean, steady, top_k, entropy, None)


def domain_router(
    inputs: Tensor, domains: Tensor, num_experts: int, top_k: int, *, entropy: float, seed: int,
    owners: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Router rows [E, H] that send the tokens of each domain [T] to experts of its own.

    ``owners`` names the domain of each expert; left out, experts go round the domains.

    Softmax regression of the centred ``inputs`` [T, H] on the domains, by steps with one fixed
    bound on the curvature (Boehning 1992): the first is ridge regression (arXiv 2603.29765), none
    needs a gradient through the model. Each domain has equal weight, whatever its size. Where
    there are more experts than domains, a domain's experts are clusters of its tokens.
    """
    import torch

    if owners is None:
        owners = [expert % (int(domains.max()) + 1) for expert in range(num_experts)]
    labels = _expert_labels(inputs, domains, owners, seed)
    sizes = torch.bincount(labels, minlength=num_experts).clamp_min(1)
    weights = 1.0 / (sizes[labels] * num_experts)
    mean = weights @ inputs
    centred = inputs - mean
    gram = (centred * weights[:, None]).T @ centred
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram))
    factor = torch.linalg.cholesky(gram + ridge)
    # Least squares for a weight whose product with every input is 1, a bias in all but name.
    raw = gram + torch.outer(mean, mean)
    steady = torch.linalg.solve(raw + ridge, mean)
    targets = torch.nn.functional.one_hot(labels, num_experts).to(inputs.dtype)
    rows, bias = torch.zeros(num_experts, inputs.shape[1]), torch.zeros(num_experts)
    for _ in range(_LABEL_ROUNDS):
        residual = targets - (centred @ rows.T + bias).softmax(-1)
        residual *= weights[:, None]
        rows = rows + 2 * torch.cholesky_solve(centred.T @ residual, factor).T
        bias = bias + 2 * residual.sum(0)
    return _finished(inputs, rows, mean, steady, top_k, entropy, weights)


def prompt_router(
    inputs: Tensor, domains: Tensor, negatives: Tensor, top_k: int, *, entropy: float, seed: int,
    owners: Sequence[int],
) -> Tensor:  # fmt: skip
    """Router rows [E, H] that point from what is not a domain to what is.

    Expert e belongs to domain ``owners[e]``. Of ``inputs`` [T, H] those of ``domains`` [T] are
    its positive examples, except where ``negatives`` [T] makes them examples against it; a domain
    without any is held against the mean of the others. Differences of mean hidden states,
    divided by the variance within domains: a linear discriminant with a diagonal covariance.
    """
    import torch

    own, against = inputs[~negatives], inputs[negatives]
    labels = _expert_labels(own, domains[~negatives], owners, seed)
    num_experts = len(owners)
    sizes = torch.bincount(labels, minlength=num_experts).clamp_min(1)
    weights = 1.0 / (sizes[labels] * num_experts)
    members = torch.nn.functional.one_hot(labels, num_experts).to(own.dtype)
    centres = (members.T @ own) / sizes[:, None]
    mean = weights @ own
    spread = weights @ (own - centres[labels]).square()
    opposite = torch.stack([
        against[domains[negatives] == owner].mean(0)
        if bool((domains[negatives] == owner).any())
        else _mean_of_others(centres, owners, owner)
        for owner in owners
    ])  # fmt: skip
    rows = (centres - opposite) / (spread + _RIDGE * spread.mean().clamp_min(1e-12))
    steady = mean / mean.square().sum().clamp_min(1e-12)
    return _finished(own, rows, mean, steady, top_k, entropy, weights)


def joining_row(inputs: Tensor, own: Tensor, rows: Tensor) -> Tensor:
    """A row [H] that wins the ``own`` [T] ones of ``inputs`` [T, H] from the ``rows`` [E, H].

    Its direction is ridge regression on own against other tokens; its size and its offset make
    softmax(rows and it) most likely, the other rows held fixed. Both kinds of tokens weigh half.
    """
    import torch

    weights = own / (2 * own.sum().clamp_min(1)) + ~own / (2 * (~own).sum().clamp_min(1))
    mean = weights @ inputs
    centred = inputs - mean
    gram = (centred * weights[:, None]).T @ centred
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram))
    direction = torch.linalg.solve(gram + ridge, (weights * (2.0 * own - 1)) @ centred)
    steady = torch.linalg.solve(gram + torch.outer(mean, mean) + ridge, mean)
    direction = direction - (direction @ mean) * steady
    features = torch.stack([inputs @ direction, inputs @ steady], dim=1).double()
    size = features.square().mean(0).sqrt().clamp_min(1e-12)
    factors = _most_likely(features / size, (inputs @ rows.T).logsumexp(-1).double(), own, weights)
    chosen = (factors / size).float()
    row: Tensor = chosen[0] * direction + chosen[1] * steady
    return row


def _most_likely(features: Tensor, others: Tensor, own: Tensor, weights: Tensor) -> Tensor:
    """Factors [2] on ``features`` [T, 2] of the logit that stands against ``others`` [T]."""
    import torch

    factors = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([factors], max_iter=_JOIN_ROUNDS, line_search_fn="strong_wolfe")
    sign = torch.where(own, 1.0, -1.0).double()

    def loss() -> Tensor:
        search.zero_grad()
        margin = sign * (features @ factors - others)
        value = -(weights.double() * torch.nn.functional.logsigmoid(margin)).sum()
        value = value + _JOIN_PENALTY * factors.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    return factors.detach()


def _mean_of_others(centres: Tensor, owners: Sequence[int], owner: int) -> Tensor:
    others = [expert for expert, other in enumerate(owners) if other != owner]
    return centres[others].mean(0) if others else centres.mean(0)


def _expert_labels(inputs: Tensor, domains: Tensor, owners: Sequence[int], seed: int) -> Tensor:
    """Each token's expert [T]: the one that its domain owns, or a cluster's where it owns more."""
    import torch

    labels = torch.zeros_like(domains)
    for domain in sorted(set(owners)):
        rows = (domains == domain).nonzero()[:, 0]
        experts = torch.tensor([e for e, owner in enumerate(owners) if owner == domain])
        if len(experts) == 1:
            labels[rows] = experts[0]
            continue
        own = inputs[rows] - inputs[rows].mean(0)
        centres = balanced_kmeans(own[:_SAMPLE], len(experts), seed)
        similarity = torch.nn.functional.normalize(own, dim=-1) @ centres.T
        prices = even_offsets(similarity, top_k=1)
        labels[rows] = experts[(similarity + prices).argmax(-1)]
    return labels


def _finished(
    inputs: Tensor, rows: Tensor, mean: Tensor, steady: Tensor, top_k: int, entropy: float,
    weights: Tensor | None,
) -> Tensor:  # fmt: skip
    """``rows`` on centred inputs as rows on the inputs themselves, even and of the entropy.

    ``steady`` [H] is a weight whose product with an input is about 1: multiples of it stand for
    the bias that routers do not have. What is measured is the router as it will be stored.
    """
    import torch

    rows = rows - torch.outer(rows @ mean, steady)
    logits, bias_input = inputs @ rows.T, inputs @ steady
    offsets = even_offsets(logits, top_k=top_k, steady=bias_input, weights=weights)
    rows = rows + torch.outer(offsets, steady)
    logits = logits + bias_input[:, None] * offsets
    return rows * _scale_for(logits[:: max(1, len(logits) // _SAMPLE)], entropy)


def mean_entropy(logits: Tensor) -> float:
    """Mean over tokens of H(softmax) / ln E for ``logits`` [T, E]."""
    log_p = logits.log_softmax(-1)
    return float(-(log_p.exp() * log_p).sum(-1).mean()) / math.log(logits.shape[1])


def _scale_for(logits: Tensor, entropy: float) -> float:
    """The factor on ``logits`` that gives them the mean entropy; it changes no choice."""
    low, high = _bracket(lambda scale: mean_entropy(logits * scale) > entropy)
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_entropy(logits * middle) > entropy else (low, middle)
    return low


def _bracket(too_flat: Callable[[float], bool]) -> tuple[float, float]:
    low = high = 1.0
    while too_flat(high) and high < 1e12:
        high *= 8
    while not too_flat(low) and low > 1e-12:
        low /= 8
    return low, high
