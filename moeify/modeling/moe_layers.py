"""Mixture and router losses that moeify's own MoE models are built from.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.

Shapes: B batch, S sequence, N = B * S tokens, H hidden, F expert width, E experts, K top-k, G slices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .moe_batch import CURRENT, RoutingBatch
from .moe_experts import Outline, SharedSlices, experts_like
from .moe_pooling import SequencePool
from .moe_routing import NullExperts, Router, TopKRouting, in_slices


class MoeFeedForward(nn.Module):
    """A router, its experts and what all tokens share: takes the place of one dense feed-forward network.

    Args:
        config: the model's, with the keys of `MoeOptions`.
        outline: the dense network.
        pool: what gives the router its inputs where it decides for a sequence; None where it
            decides for each token.
        dropout: what ends the dense network, where it ends with one.
    """

    def __init__(
        self, config: Any, outline: Outline, *, pool: SequencePool | None = None, dropout: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.router = Router(outline.hidden_size, config.num_experts)
        self.num_experts = config.num_experts
        self.nulls = NullExperts(config, outline.hidden_size) if config.null_experts else None
        self.routing = TopKRouting(
            config.num_experts_per_tok,
            config.norm_topk_prob,
            outline.slices,
            biased=config.num_experts if config.router_bias else 0,
            nulls=config.null_experts,
        )
        self.experts = experts_like(outline, config)
        self.shared = SharedSlices(outline) if outline.shared else None
        self.pool, self.jitter = pool, float(config.router_jitter_noise)
        self.dropout = dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [B, S, H] to [B, S, H], or to the width of the experts' outputs."""
        batch = CURRENT.get() or RoutingBatch()
        # [B, S, H] -> [N, H]
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        read = tokens
        if self.pool is not None:
            read = self.pool(hidden_states, mask=batch.mask, starts=batch.starts, cache=batch.cache)
        if self.training and self.jitter:
            read = read * torch.empty_like(read).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = self.router(read)
        if self.nulls is not None:
            logits = torch.cat([logits, self.nulls(read)], dim=-1)
        if self.pool is not None and not self.pool.causal and batch.starts is None:
            # [B, E] -> [N, E]: all tokens of a sequence go where it goes
            logits = logits.unsqueeze(1).expand(-1, hidden_states.shape[1], -1).flatten(0, 1)
        logits, weights, experts = self.routing(logits)
        if batch.logits is not None:
            batch.logits.append(logits)
            batch.chosen.append(experts)
        weights = weights.to(tokens.dtype)
        if self.nulls is None:
            mixed = self.experts(tokens, experts, weights)
        else:
            is_null = experts >= self.num_experts
            # What no expert computes bears the number after the last one.
            visited = experts.clamp(max=self.num_experts)
            mixed = self.experts(tokens, visited, weights.masked_fill(is_null, 0.0))
            mixed = self.nulls.add(mixed, tokens, experts - self.num_experts, weights.masked_fill(~is_null, 0.0))
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        mixed = mixed.view(*hidden_states.shape[:-1], mixed.shape[-1])
        return mixed if self.dropout is None else self.dropout(mixed)


def default_experts_implementation(requested: str | None) -> str:
    """The implementation of the experts for this machine, unless one is requested.

    Without an accelerator "eager" is both the fastest (its products are as large as grouped ones
    and run on the dense layers' kernels) and exact to the bit; with one "grouped_mm" spares a wait
    for the expert counts in every layer.
    """
    if requested is not None:
        return requested
    return "grouped_mm" if torch.accelerator.is_available() else "eager"


def balance_loss(
    *,
    router_logits: Sequence[Tensor],
    top_k: int,
    mask: Tensor | None = None,
    slices: int = 1,
    chosen: Sequence[Tensor] | None = None,
    nulls: int = 0,
) -> Tensor:
    """How unevenly tokens are spread over the experts, averaged over the layers.

    For one layer this is E * sum_i f_i * P_i of Switch Transformer (arXiv 2101.03961, equations
    4 to 6), with f_i = n_i / N counted over all K choices and P_i the mean probability, that inside
    a slice over G. Perfect balance gives K; all tokens on the same K experts with even weights gives
    E. Layers are kept apart: added up first, layers that collapsed onto different experts would look
    balanced.

    Args:
        router_logits: for each MoE layer [N, E].
        top_k: K, experts per token.
        mask: [N], nonzero for the tokens that count; None counts all.
        slices: G, in each of which K / G experts are chosen.
        chosen: for each MoE layer the experts [N, K]; None where they are those of the largest logits.
        nulls: Z, null experts, whose logits are the last Z of E + Z. They are left out: the load and
            the probabilities are those of experts among one another.

    Returns:
        A scalar, float32. 0 if the mask leaves no token.
    """
    visited = iter(chosen or [None] * len(router_logits))
    return _mean_over_layers(
        router_logits,
        lambda logits: _balance(logits[..., : logits.shape[-1] - nulls], next(visited), top_k, mask, slices),
    )


def z_loss(*, router_logits: Sequence[Tensor], mask: Tensor | None = None, slices: int = 1) -> Tensor:
    """Mean over tokens and slices of logsumexp(logits)^2, averaged over the layers.

    It keeps router logits small (ST-MoE, arXiv 2202.08906, equation 5).

    Args:
        router_logits: for each MoE layer [N, E], those of null experts included.
        mask: [N], nonzero for the tokens that count; None counts all.
        slices: G, each of which has a softmax of its own.

    Returns:
        A scalar, float32. 0 if the mask leaves no token.
    """

    def layer_loss(logits: Tensor) -> Tensor:
        size = in_slices(logits.float(), slices).logsumexp(dim=-1).square()
        return _mean_over_tokens(size.mean(dim=-1), mask)

    return _mean_over_layers(router_logits, layer_loss)


def _balance(logits: Tensor, chosen: Tensor | None, top_k: int, mask: Tensor | None, slices: int) -> Tensor:
    # [N, E] -> [N, G, E / G]
    inside = in_slices(logits.float(), slices)
    # 1 where the token goes to the expert
    if chosen is None:
        visits = torch.zeros_like(inside).scatter_(-1, inside.topk(top_k // slices, dim=-1).indices, 1.0)
    else:
        count = logits.shape[-1]
        visits = logits.new_zeros(*chosen.shape[:-1], count + 1, dtype=torch.float32)
        visits = in_slices(visits.scatter_(-1, chosen.clamp(max=count), 1.0)[..., :count], slices)
    load = _mean_over_tokens(visits, mask)
    probability = _mean_over_tokens(inside.softmax(dim=-1), mask)
    # E experts, and 1 / G of each slice's probability
    return inside.shape[-1] * (load * probability).sum()


def _mean_over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(dim=0)
    counted = (mask != 0).to(device=values.device, dtype=values.dtype)
    return torch.tensordot(counted, values, dims=1) / counted.sum().clamp(min=1)


def _mean_over_layers(router_logits: Sequence[Tensor], layer_loss: Callable[[Tensor], Tensor]) -> Tensor:
    if not router_logits:
        raise ValueError("router_logits is empty: the model has no MoE layer or recorded none.")
    # Layers may lie on different devices under a device map.
    device = router_logits[0].device
    return torch.stack([layer_loss(logits).to(device) for logits in router_logits]).mean()


def token_mask(attention_mask: Any, num_tokens: int) -> Tensor | None:
    """Flatten an attention mask to the tokens that went through the model.

    Args:
        attention_mask: [B, S] or [B, choices, S], nonzero for real tokens; with a key-value cache
            its last axis also covers the cached tokens. Anything else says nothing about padding.
        num_tokens: N, the tokens of this forward pass.

    Returns:
        [N], or None if every token counts.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim not in (2, 3):
        return None
    # [B, S] or [B, choices, S] -> [rows, S]
    rows = attention_mask.reshape(-1, attention_mask.shape[-1])
    # No divmod: the sizes of an export know // and % only.
    length = num_tokens // rows.shape[0]
    if num_tokens % rows.shape[0] or not 0 < length <= rows.shape[-1]:
        return None
    return rows[:, -length:].reshape(-1)
