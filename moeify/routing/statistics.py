"""How evenly, how decidedly and on what the routers of a mixture route: O(E) sums, then figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeify.routing.choosing import in_slices, visits

if TYPE_CHECKING:
    from torch import Tensor

    from moeify.routing.collection import RoutedTokens

Float64 = NDArray[np.float64]

DEAD_SHARE = 0.1
"""An expert with less than this part of the fair share of tokens counts as dead."""

COLLAPSED_SHARE = 0.9
"""A layer whose K busiest experts take more of the assignments than this counts as collapsed."""


def normalised(entropy: float, num_experts: int) -> float:
    """An entropy over ln E. That of one expert is 1: its load is even, and nothing is decided."""
    return entropy / math.log(num_experts) if num_experts > 1 else 1.0


class LayerRouting:
    """Sums over the tokens of one MoE layer, and the figures made from them.

    Sums are float64. n_i are the assignments to expert i, T the tokens, K the experts per token;
    "share" is n_i / (T K). Shapes: [E], for pairs [E, E], for domains [E, D]. Experts in ``slices`` have a router
    for each: entropy, z, margins, best experts and what they have to do with domains are means over the slices.
    """

    def __init__(self, num_experts: int, top_k: int, num_domains: int = 0, slices: int = 1) -> None:
        self.num_experts, self.top_k, self.num_domains, self.slices = num_experts, top_k, num_domains, slices
        self.tokens = 0
        self.tokens_per_expert = np.zeros(num_experts)
        """n_i, assignments to each expert [E]."""
        self.first_per_expert = np.zeros(num_experts)
        """Tokens whose best expert it is, in its slice [E]."""
        self.gate_mass = np.zeros(num_experts)
        """Sum of the weights that multiply each expert's output [E]."""
        self.probability_sum = np.zeros(num_experts)
        """Sum over tokens of the router's softmax, or of what its family has instead [E]."""
        self.pairs = np.zeros((num_experts, num_experts))
        """Tokens that visit both experts [E, E]; the diagonal is n_i."""
        self.per_domain = np.zeros((num_experts, num_domains))
        """Assignments by domain [E, D]."""
        self.first_per_domain = np.zeros((num_experts, num_domains))
        """Tokens whose best expert it is, by domain [E, D]."""
        self.tokens_per_domain = np.zeros(num_domains)
        self.entropy_sum = 0.0
        self.z_sum = 0.0
        self.margin_sum = 0.0

    def update(self, tokens: RoutedTokens) -> None:
        """Add a batch of real tokens."""
        import torch

        count, experts = len(tokens.logits), tokens.experts
        logits = tokens.logits.double()
        probabilities = logits.softmax(-1) if tokens.scores is None else tokens.scores.double()
        selection = logits if tokens.selection is None else tokens.selection.double()
        chosen = visits(experts, torch.ones(experts.shape), self.num_experts)
        weights = visits(experts, tokens.weights.double(), self.num_experts)
        first = torch.zeros_like(chosen).scatter_(1, experts[:, :: self.top_k // self.slices], 1.0)
        self.tokens += count
        self.tokens_per_expert += chosen.sum(0, dtype=torch.float64).numpy()
        self.first_per_expert += first.sum(0, dtype=torch.float64).numpy()
        self.gate_mass += weights.sum(0).numpy()
        self.probability_sum += probabilities.sum(0).numpy()
        # A batch has far fewer than 2^24 tokens, so these float32 counts are exact.
        self.pairs += (chosen.T @ chosen).double().numpy()
        # [T, E] -> [T G, E / G], where the probabilities of a slice sum to 1
        inside, apart, taken = (
            in_slices(part, self.slices).flatten(0, 1) for part in (probabilities * self.slices, selection, chosen)
        )
        self.entropy_sum -= float(torch.special.xlogy(inside, inside).sum()) / self.slices
        z = in_slices(logits, self.slices).logsumexp(-1).square()
        self.z_sum += float(z.sum()) / self.slices
        self.margin_sum += float(_margins(apart, taken).sum()) / self.slices
        if tokens.domains is not None and self.num_domains:
            domains = torch.nn.functional.one_hot(tokens.domains, self.num_domains).float()
            self.per_domain += (chosen.T @ domains).double().numpy()
            self.first_per_domain += (first.T @ domains).double().numpy()
            self.tokens_per_domain += domains.sum(0, dtype=torch.float64).numpy()

    @property
    def load(self) -> Float64:
        """Share of the assignments that each expert gets, n_i / (T K) [E] without null experts; sums to 1."""
        shares: Float64 = self.tokens_per_expert / max(self.tokens_per_expert.sum(), 1)
        return shares

    @property
    def experts_per_token(self) -> float:
        """Experts that a token visits on average: K, fewer where it chooses null experts."""
        return float(self.tokens_per_expert.sum() / max(self.tokens, 1))

    @property
    def utilization(self) -> Float64:
        """Load relative to the fair share, share x E [E]; 1 is even."""
        return self.load * self.num_experts

    @property
    def max_violation(self) -> float:
        """MaxVio = max(n) / mean(n) - 1 (arXiv 2408.15664): 0 even, E / K - 1 collapsed."""
        return float(self.utilization.max() - 1)

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the load, std(n) / mean(n)."""
        return float(np.std(self.utilization))

    @property
    def load_entropy(self) -> float:
        """Normalised entropy of the load, H(share) / ln E: 1 is even."""
        return normalised(_entropy(self.load), self.num_experts)

    @property
    def entropy(self) -> float:
        """Mean over tokens of H(p) / ln E for the router's softmax p: 1 undecided, 0 certain."""
        return normalised(self.entropy_sum / max(self.tokens, 1), self.num_experts // self.slices)

    @property
    def gate_mass_fraction(self) -> Float64:
        """Each expert's part of the summed weights [E]; sums to 1."""
        return self.gate_mass / max(float(self.gate_mass.sum()), 1e-300)

    @property
    def margin(self) -> float:
        """Mean gap between the last chosen and the first unchosen logit; 0 when K = E.

        Families that choose by something else than the logits have their gap in that.
        """
        return self.margin_sum / max(self.tokens, 1)

    @property
    def dead(self) -> tuple[int, ...]:
        """Experts below a tenth of the fair share."""
        return tuple(int(i) for i in np.flatnonzero(self.utilization < DEAD_SHARE))

    @property
    def unused(self) -> tuple[int, ...]:
        """Experts without any token."""
        return tuple(int(i) for i in np.flatnonzero(self.tokens_per_expert == 0))

    @property
    def collapsed(self) -> bool:
        """Whether nearly all tokens go to the same K experts."""
        if self.num_experts <= self.top_k:
            return False
        busiest = np.sort(self.load)[-self.top_k :].sum()
        return bool(busiest > max(COLLAPSED_SHARE, (1 + self.top_k / self.num_experts) / 2))

    @property
    def balance_loss(self) -> float:
        """E x sum_i f_i P_i (arXiv 2101.03961 eq. 4), over all K choices: K even, E collapsed."""
        count = max(self.tokens, 1)
        f, p = self.tokens_per_expert / count, self.probability_sum / count
        return float(self.num_experts * (f * p).sum())

    @property
    def coactivation(self) -> Float64:
        """N_ij / N_i: of the tokens of expert i, the part that also visits j [E, E]; 0 diagonal.

        OLMoE (arXiv 2409.02060, section 5.2).
        """
        result: Float64 = self.pairs / np.maximum(self.tokens_per_expert, 1)[:, None]
        np.fill_diagonal(result, 0.0)
        return result

    @property
    def coactivation_by_chance(self) -> Float64:
        """The same where those meetings are spread evenly over the experts [E, E]; 0 diagonal.

        Two of a slice of C experts, of which a token visits m, meet in (m - 1) / (C - 1), two of different slices in
        m / C.
        """
        slice_of = np.arange(self.num_experts) // (self.num_experts // self.slices)
        together = slice_of[:, None] == slice_of
        visits, others = max(float(self.tokens_per_expert.sum()), 1.0), ~np.eye(self.num_experts, dtype=bool)
        result = np.zeros_like(self.pairs)
        for place in (together & others, ~together):
            result[place] = self.pairs[place].sum() / visits / max(place[0].sum(), 1)
        return result

    @property
    def domains(self) -> DomainFigures | None:
        """What the experts have to do with the domains; None where the data names none."""
        if not self.num_domains:
            return None
        return DomainFigures.of(self)


@dataclass(frozen=True, kw_only=True)
class DomainFigures:
    """Experts against domains.

    ``specialization`` [E, D] is N_{i,D} / N_D, the part of a domain's tokens that visit expert i
    (arXiv 2409.02060, section 5.3); evenly it is ``baseline`` = K / E, less where tokens choose null experts.
    ``nmi`` is the mutual information of expert and domain over their mean entropy, 0 unrelated to 1 identical.
    ``own_domain`` [E] is each expert's most specialised domain, ``enrichment`` [E] its
    specialisation there over that on all other tokens. ``own_expert_fraction`` [D] is, for each
    domain, the part of its tokens whose best expert is the domain's most frequent best expert.
    """

    specialization: Float64
    baseline: float
    nmi: float
    own_domain: tuple[int, ...]
    enrichment: Float64
    own_expert_fraction: Float64

    @classmethod
    def of(cls, layer: LayerRouting) -> DomainFigures:
        """The figures of one layer's sums."""
        counts, tokens = layer.per_domain, np.maximum(layer.tokens_per_domain, 1)
        firsts = layer.first_per_domain
        specialization = counts / tokens
        own = specialization.argmax(1)
        rows = np.arange(layer.num_experts)
        elsewhere = counts.sum(1) - counts[rows, own]
        other_tokens = np.maximum(layer.tokens_per_domain.sum() - layer.tokens_per_domain[own], 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            enrichment = specialization[rows, own] / (elsewhere / other_tokens)
        return cls(
            specialization=specialization,
            baseline=layer.experts_per_token / layer.num_experts,
            nmi=float(np.mean([_nmi(part) for part in np.split(counts, layer.slices)])),
            own_domain=tuple(int(domain) for domain in own),
            enrichment=np.nan_to_num(enrichment, nan=1.0, posinf=np.inf),
            own_expert_fraction=np.mean([part.max(0) for part in np.split(firsts, layer.slices)], axis=0) / tokens,
        )


class RoutingStatistics:
    """``LayerRouting`` for every MoE layer: an observer for ``collect``."""

    def __init__(self, num_domains: int = 0) -> None:
        self.num_domains = num_domains
        self.layers: dict[int, LayerRouting] = {}

    def __call__(self, tokens: RoutedTokens) -> None:
        if tokens.layer not in self.layers:
            num_experts, top_k = tokens.logits.shape[1], tokens.experts.shape[1]
            self.layers[tokens.layer] = LayerRouting(num_experts, top_k, self.num_domains, tokens.slices)
        self.layers[tokens.layer].update(tokens)

    @property
    def tokens(self) -> int:
        """Tokens seen by each layer."""
        return max((layer.tokens for layer in self.layers.values()), default=0)

    @property
    def max_violation(self) -> float:
        """MaxVio averaged over the layers."""
        return float(np.mean([layer.max_violation for layer in self.layers.values()]))

    @property
    def experts_per_token(self) -> float:
        """Experts that a token visits, null ones not counted, averaged over the layers."""
        return float(np.mean([layer.experts_per_token for layer in self.layers.values()]))

    @property
    def entropy(self) -> float:
        """Normalised router entropy averaged over the layers."""
        return float(np.mean([layer.entropy for layer in self.layers.values()]))


def _margins(selection: Tensor, chosen: Tensor) -> Tensor:
    last_chosen = selection.masked_fill(chosen == 0, math.inf).amin(1)
    first_unchosen = selection.masked_fill(chosen == 1, -math.inf).amax(1)
    # Without an expert that could have been chosen instead there is no gap.
    return (last_chosen - first_unchosen).masked_fill(first_unchosen == -math.inf, 0.0)


def _entropy(shares: Float64) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _nmi(counts: Float64) -> float:
    """Mutual information over the arithmetic mean of the two entropies, from counts [E, D]."""
    joint = counts / max(float(counts.sum()), 1.0)
    experts, domains = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    mutual = experts + domains - _entropy(joint.ravel())
    mean = (experts + domains) / 2
    return mutual / mean if mean > 0 else 0.0
