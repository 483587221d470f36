"""Router, mixture and router losses that moeify's own MoE models are built from.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.

Shapes: B batch, S sequence, N = B * S tokens, H hidden, F expert width, E experts, K top-k, G slices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from .moe_batch import CURRENT, RoutingBatch
from .moe_experts import Outline, SharedSlices, experts_like
from .moe_pooling import SequencePool


class Router(nn.Linear):
    """Score of each expert for each token, in float32 at least.

    It is a plain bias-free `nn.Linear`, so LoRA and hooks find it by the name `router`.
    """

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return router logits [N, E] in float32 or wider for `hidden_states` [N, H]."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        with maybe_autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.to(dtype), self.weight.to(dtype))


def _in_slices(values: Tensor, slices: int) -> Tensor:
    """[N, E] as [N, G, E / G]: what each slice chooses from."""
    return values.unflatten(-1, (slices, values.shape[-1] // slices))


class TopKRouting(nn.Module):
    """Choice of K experts per token and their weights, K / G in each of G slices by itself.

    It holds no parameters: it is a module so that hooks see what is chosen, whatever an adapter
    has wrapped around the router. With `biased` experts, of which there are so many, the best are
    those of the largest probability plus `e_score_correction_bias` [E], which weights do not see
    (arXiv 2408.15664, equation 3).
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, top_k: int, norm_topk_prob: bool, slices: int = 1, biased: int = 0) -> None:
        super().__init__()
        self.top_k = top_k
        self.norm_topk_prob = norm_topk_prob
        self.slices = slices
        bias = torch.zeros(biased, dtype=torch.float32) if biased else None
        self.register_buffer("e_score_correction_bias", bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TopKRouting":
        """Move as any module does, but keep the bias in float32: bfloat16 has no steps of 0.001 above 0.25."""
        before = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if before is not None and moved.dtype != before.dtype:
            self.e_score_correction_bias = before.to(moved.device)
        return self

    def forward(self, router_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose experts.

        Args:
            router_logits: [N, E], float32 at least.

        Returns:
            The logits [N, E] again, the weights [N, K] and the experts' numbers [N, K], slice by
            slice. The weights of a slice sum to 1 if `norm_topk_prob`, else they are the
            probabilities themselves.
        """
        bias = self.e_score_correction_bias
        if self.slices == 1:
            return router_logits, *self._chosen(router_logits, self.top_k, bias)
        logits = _in_slices(router_logits, self.slices)
        bias = None if bias is None else _in_slices(bias, self.slices)
        weights, experts = self._chosen(logits, self.top_k // self.slices, bias)
        # [G, 1], the number of each slice's first expert
        first = torch.arange(self.slices, device=experts.device).unsqueeze(-1) * logits.shape[-1]
        return router_logits, weights.flatten(-2), (experts + first).flatten(-2)

    def _chosen(self, logits: Tensor, top_k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weights and the places of the best along the last axis."""
        if bias is None:
            chosen_logits, experts = logits.topk(top_k, dim=-1)
        else:
            experts = (logits.detach().softmax(dim=-1) + bias).topk(top_k, dim=-1).indices
            chosen_logits = logits.gather(-1, experts)
        if self.norm_topk_prob and top_k > 1:
            # Equals p / sum(p) over the chosen, without the rounding of the other E - K terms.
            return chosen_logits.softmax(dim=-1), experts
        weights = logits.softmax(dim=-1).gather(-1, experts)
        if self.norm_topk_prob:
            # One renormalised weight is the constant 1; this is 1 too, but its gradient is not 0.
            weights = weights / weights.detach()
        return weights, experts

    def extra_repr(self) -> str:
        slices = f", slices={self.slices}" if self.slices > 1 else ""
        biased = ", biased" if self.e_score_correction_bias is not None else ""
        return f"top_k={self.top_k}, norm_topk_prob={self.norm_topk_prob}{slices}{biased}"


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
        self.routing = TopKRouting(
            config.num_experts_per_tok,
            config.norm_topk_prob,
            outline.slices,
            config.num_experts if config.router_bias else 0,
        )
        self.experts = experts_like(outline, config)
        self.shared = SharedSlices(outline) if outline.shared else None
        self.pool = pool
        self.dropout = dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [B, S, H] to [B, S, H], or to the width of the experts' outputs."""
        batch = CURRENT.get() or RoutingBatch()
        # [B, S, H] -> [N, H]
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        read = tokens
        if self.pool is not None:
            read = self.pool(hidden_states, mask=batch.mask, starts=batch.starts, cache=batch.cache)
        logits = self.router(read)
        if self.pool is not None and not self.pool.causal and batch.starts is None:
            # [B, E] -> [N, E]: all tokens of a sequence go where it goes
            logits = logits.unsqueeze(1).expand(-1, hidden_states.shape[1], -1).flatten(0, 1)
        logits, weights, experts = self.routing(logits)
        if batch.logits is not None:
            batch.logits.append(logits)
            batch.chosen.append(experts)
        mixed = self.experts(tokens, experts, weights.to(tokens.dtype))
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

    Returns:
        A scalar, float32. 0 if the mask leaves no token.
    """
    visited = iter(chosen or [None] * len(router_logits))
    return _mean_over_layers(router_logits, lambda logits: _balance(logits, next(visited), top_k, mask, slices))


def z_loss(*, router_logits: Sequence[Tensor], mask: Tensor | None = None, slices: int = 1) -> Tensor:
    """Mean over tokens and slices of logsumexp(logits)^2, averaged over the layers.

    It keeps router logits small (ST-MoE, arXiv 2202.08906, equation 5).

    Args:
        router_logits: for each MoE layer [N, E].
        mask: [N], nonzero for the tokens that count; None counts all.
        slices: G, each of which has a softmax of its own.

    Returns:
        A scalar, float32. 0 if the mask leaves no token.
    """

    def layer_loss(logits: Tensor) -> Tensor:
        size = _in_slices(logits.float(), slices).logsumexp(dim=-1).square()
        return _mean_over_tokens(size.mean(dim=-1), mask)

    return _mean_over_layers(router_logits, layer_loss)


def _balance(logits: Tensor, chosen: Tensor | None, top_k: int, mask: Tensor | None, slices: int) -> Tensor:
    # [N, E] -> [N, G, E / G]
    inside = _in_slices(logits.float(), slices)
    empty = torch.zeros_like(inside)
    # 1 where the token goes to the expert
    if chosen is None:
        visits = empty.scatter_(-1, inside.topk(top_k // slices, dim=-1).indices, 1.0)
    else:
        visits = _in_slices(empty.flatten(-2).scatter_(-1, chosen, 1.0), slices)
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
