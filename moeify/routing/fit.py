"""Routers set from their inputs without a backward pass: clusters or domains, evenly loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moeify.routing.clustering import balanced_kmeans, even_offsets
from moeify.routing.statistics import normalised

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLE = 4096
_SAMPLE_PER_EXPERT = 64
_RIDGE = 1e-2
_LABEL_RIDGE = 1e-1
_LABEL_ROUNDS = 30
_BISECTIONS = 30
_JOIN_ROUNDS = 100
_JOIN_PENALTY = 1e-4  # keeps the size finite where the tokens can be told apart without error


def kmeans_router(inputs: Tensor, num_experts: int, top_k: int, *, entropy: float, seed: int) -> Tensor:
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
    return _finished(inputs, rows, mean, steady, (top_k,), entropy, None)


def domain_router(
    inputs: Tensor, domains: Tensor, num_experts: int, top_k: int, *, entropy: float, seed: int
) -> Tensor:
    """Router rows [E, H] that send the tokens of each domain [T] to experts of its own.

    Experts, which may be copies of one another, go round the domains. Softmax regression of the
    centred ``inputs`` [T, H] on the domains, by steps with one fixed bound on the curvature
    (Boehning 1992): the first is ridge regression (arXiv 2603.29765), none needs a gradient through
    the model. Each domain has equal weight, whatever its size. Where there are more experts than
    domains, a domain's experts are clusters of its tokens. Offsets lie half-way between those that
    make first choices even, where most tokens find their own expert, and those that make all K
    even: near its best the former hardly changes.
    """
    import torch

    owners = [expert % (int(domains.max()) + 1) for expert in range(num_experts)]
    labels = _expert_labels(inputs, domains, owners, seed)
    weights = 1.0 / torch.bincount(labels)[labels] / num_experts
    mean = weights @ inputs
    centred = inputs - mean
    ridge = _RIDGE * _variance(centred, weights)
    features = torch.cat([centred, torch.ones(len(inputs), 1)], 1)
    moments = _second_moments(features, weights)
    penalty = torch.cat([ridge.expand(inputs.shape[1]), torch.zeros(1)])
    targets = torch.nn.functional.one_hot(labels, num_experts).to(inputs.dtype)
    rows = _softmax_regression(features, targets, weights, moments + penalty.diag())[:, :-1]
    steady = _bias_in_all_but_name(moments[:-1, :-1], mean, ridge, len(inputs))
    return _finished(inputs, rows, mean, steady, (1, top_k), entropy, weights)


def label_router(
    inputs: Tensor,
    domains: Tensor,
    *,
    owners: Sequence[int],
    seed: int,
    negatives: Tensor | None = None,
    entropy: float | None = None,
) -> Tensor:
    """Router rows [E, H] whose softmax is how likely a token is to be of each expert's domain.

    Softmax regression of the ``inputs`` [T, H] on their ``domains`` [T], as a router reads them:
    without centring, and without a bias, which routers do not have. Expert e belongs to domain
    ``owners[e]``. Inputs that ``negatives`` [T] marks are examples against their domain, shared by
    all experts of others. Loads are not made even: that takes tokens from the experts that know
    them. ``entropy`` flattens or sharpens the softmax; None leaves it as the text says.
    """
    import torch

    against = torch.zeros_like(domains, dtype=torch.bool) if negatives is None else negatives
    labels = _expert_labels(inputs[~against], domains[~against], owners, seed)
    elsewhere = (torch.tensor(owners) != domains[:, None]).to(inputs.dtype)
    targets = elsewhere / elsewhere.sum(1, keepdim=True).clamp_min(1)
    targets[~against] = torch.nn.functional.one_hot(labels, len(owners)).to(inputs.dtype)
    groups = domains + len(owners)
    groups[~against] = labels
    sizes = torch.bincount(groups)
    weights = 1.0 / (sizes[groups] * (sizes > 0).sum())
    penalty = _LABEL_RIDGE * _variance(inputs - weights @ inputs, weights)
    curvature = _second_moments(inputs, weights) + penalty * torch.eye(inputs.shape[1])
    rows = _softmax_regression(inputs, targets, weights, curvature)
    if entropy is None:
        return rows
    return rows * _scale_for((inputs @ rows.T)[:: max(1, len(inputs) // _SAMPLE)], entropy)


def _bias_in_all_but_name(moments: Tensor, mean: Tensor, ridge: Tensor, count: int) -> Tensor:
    """Least squares for a weight [H] whose product with every one of ``count`` inputs is 1.

    ``moments`` [H, H] are those of the centred inputs. The more inputs there are for each of its H
    numbers, the less ``ridge`` it needs: what is left of the variation of that product is noise on
    the offsets.
    """
    import torch

    width = len(mean)
    ridge = ridge.double() * min(1.0, width / count)
    raw = moments + torch.outer(mean, mean).double() + ridge * torch.eye(width).double()
    solved: Tensor = torch.linalg.solve(raw, mean.double())
    return solved.to(mean.dtype)


def _variance(centred: Tensor, weights: Tensor) -> Tensor:
    return (weights @ centred.square()).mean().clamp_min(1e-12)


def _second_moments(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the outer products of ``features`` [T, D], float64 [D, D]."""
    import torch

    mean = weights @ features
    centred = features - mean
    # Apart: the mean can be hundreds of times as large as what tells tokens apart.
    gram = ((centred * weights[:, None]).T @ centred).double()
    return gram + torch.outer(mean, mean).double()


def _softmax_regression(features: Tensor, targets: Tensor, weights: Tensor, curvature: Tensor) -> Tensor:
    """Rows [E, D] that make the ``targets`` [T, E] likely for ``features`` [T, D].

    Steps with one fixed bound on the curvature (Boehning 1992): ``curvature`` [D, D] are the
    features' second moments and a ridge.
    """
    import torch

    factor = torch.linalg.cholesky(curvature)
    rows = torch.zeros(targets.shape[1], features.shape[1])
    # Experts by tokens: the other way round each step takes several times as long.
    wanted = targets.T.contiguous()
    for _ in range(_LABEL_ROUNDS):
        residual = (wanted - (rows @ features.T).softmax(0)) * weights
        gradient = (residual @ features).T.double()
        rows = rows + 2 * torch.cholesky_solve(gradient, factor).T.to(rows.dtype)
    return rows


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
    inputs: Tensor,
    rows: Tensor,
    mean: Tensor,
    steady: Tensor,
    choices: tuple[int, ...],
    entropy: float,
    weights: Tensor | None,
) -> Tensor:
    """``rows`` on centred inputs as rows on the inputs themselves, even and of the entropy.

    Offsets are the mean of those that make the best K experts even, for each K in ``choices``.

    ``steady`` [H] is a weight whose product with an input is about 1: multiples of it stand for
    the bias that routers do not have. What is measured is the router as it will be stored.
    """
    import torch

    rows = rows - torch.outer(rows @ mean, steady)
    logits, bias_input = inputs @ rows.T, inputs @ steady
    offsets = torch.stack([even_offsets(logits, top_k=k, steady=bias_input, weights=weights) for k in choices]).mean(0)
    rows = rows + torch.outer(offsets, steady)
    logits = logits + bias_input[:, None] * offsets
    return rows * _scale_for(logits[:: max(1, len(logits) // _SAMPLE)], entropy)


def mean_entropy(logits: Tensor) -> float:
    """Mean over tokens of H(softmax) / ln E for ``logits`` [T, E]."""
    log_p = logits.log_softmax(-1)
    return normalised(float(-(log_p.exp() * log_p).sum(-1).mean()), logits.shape[1])


def _scale_for(logits: Tensor, entropy: float) -> float:
    """The factor on ``logits`` that gives them the mean entropy; it changes no choice."""
    if logits.shape[1] == 1:
        return 1.0  # none changes the entropy of one expert
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
