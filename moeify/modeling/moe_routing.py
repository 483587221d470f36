"""How moeify's own MoE models choose experts: routers, the choice itself, and experts that compute next to nothing.

This file travels inside checkpoints: it imports torch and transformers only.

Shapes: N tokens, H hidden, E experts, K top-k, G slices, Z null experts.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast


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


def in_slices(values: Tensor, slices: int) -> Tensor:
    """[N, E] as [N, G, E / G]: what each of G slices chooses from."""
    return values.unflatten(-1, (slices, values.shape[-1] // slices))


class TopKRouting(nn.Module):
    """Choice of K experts per token and their weights, K / G in each of G slices by itself.

    It holds no parameters: it is a module so that hooks see what is chosen, whatever an adapter
    has wrapped around the router. With `biased` experts, of which there are so many, the best are
    those of the largest probability plus `e_score_correction_bias` [E], which weights do not see
    (arXiv 2408.15664, equation 3). With `nulls`, Z null experts behind the E others, only the first choice is
    always an expert, and the weights of the chosen experts sum to 1 among themselves.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, top_k: int, norm_topk_prob: bool, slices: int = 1, *, biased: int = 0, nulls: int = 0) -> None:
        super().__init__()
        self.top_k = top_k
        self.norm_topk_prob = norm_topk_prob
        self.slices = slices
        self.nulls = nulls
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
            router_logits: [N, E], [N, E + Z] with null experts, float32 at least.

        Returns:
            The logits again, the weights [N, K] and the experts' numbers [N, K], slice by
            slice. The weights of a slice sum to 1 if `norm_topk_prob`, else they are the
            probabilities themselves. Null experts are numbers E to E + Z - 1, and their weights what
            a softmax over all K choices gives them.
        """
        bias = self.e_score_correction_bias
        if self.nulls:
            return router_logits, *self._chosen_beside_nulls(router_logits)
        if self.slices == 1:
            return router_logits, *self._chosen(router_logits, self.top_k, bias)
        logits = in_slices(router_logits, self.slices)
        bias = None if bias is None else in_slices(bias, self.slices)
        weights, experts = self._chosen(logits, self.top_k // self.slices, bias)
        # [G, 1], the number of each slice's first expert
        first = torch.arange(self.slices, device=experts.device).unsqueeze(-1) * logits.shape[-1]
        return router_logits, weights.flatten(-2), (experts + first).flatten(-2)

    def _chosen_beside_nulls(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The best expert, the K - 1 best of all others, and their weights."""
        selection, count = logits.detach(), logits.shape[-1] - self.nulls
        if self.e_score_correction_bias is not None:
            selection = selection.softmax(dim=-1) + F.pad(self.e_score_correction_bias, (0, self.nulls))
        first = selection[:, :count].argmax(dim=-1, keepdim=True)
        others = selection.scatter(-1, first, float("-inf")).topk(self.top_k - 1, dim=-1).indices
        chosen = torch.cat([first, others], dim=-1)
        scores, is_null = logits.gather(-1, chosen), chosen >= count
        spent = scores.masked_fill(is_null, torch.finfo(scores.dtype).min)
        weights = spent.softmax(dim=-1)
        # What further experts change of the first one's output is multiplied by 1, whose gradient, that of their
        # probability beside the null ones, tells null rows what it was worth.
        further = F.logsigmoid(spent[:, 1:].logsumexp(-1, True) - logits[:, count:].logsumexp(-1, True))
        others = weights[:, 1:] * (further - further.detach()).exp()
        weights = torch.cat([1 - others.sum(-1, keepdim=True), others], dim=-1)
        return torch.where(is_null, scores.softmax(dim=-1), weights), chosen

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
        nulls = f", nulls={self.nulls}" if self.nulls else ""
        return f"top_k={self.top_k}, norm_topk_prob={self.norm_topk_prob}{slices}{biased}{nulls}"


class NullExperts(nn.Module):
    """Z experts that a token may choose in place of further ones, after its first, and their rows of the router.

    They are of the kinds of MoE++ (arXiv 2410.07348, section 3.1), in this order, dealt out in turn: `zero` ones give
    0, `copy` ones give alpha x and `constant` ones a vector v. What they give is added beside the experts, whose
    weights sum to 1 without them, and alpha and v begin at 0: the first output is that without null experts.

    Args:
        config: the model's, with the keys of `MoeOptions`.
        hidden_size: H.
    """

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.count = config.null_experts
        copies, constants = (config.nulls_of(kind) for kind in ("copy", "constant"))
        self.copies, self.constants = copies, constants
        self.router = Router(hidden_size, self.count)
        self.scale = nn.Parameter(torch.empty(copies)) if copies else None
        self.constant = nn.Parameter(torch.empty(constants, hidden_size)) if constants else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return router logits [N, Z] for `hidden_states` [N, H]."""
        return self.router(hidden_states)

    def add(self, outputs: Tensor, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """`outputs` [N, H] of the experts with what null experts give for `hidden_states` [N, H].

        Args:
            outputs: [N, H].
            hidden_states: [N, H].
            chosen: [N, K], numbers of null experts from 0 on, below 0 for other experts.
            weights: [N, K], 0 for other experts.
        """
        if not self.copies + self.constants:
            return outputs
        # [N, K] -> [N, Z], in the order of their kinds
        shares = weights.new_zeros(len(weights), self.count).scatter_add(1, chosen.clamp(min=0), weights)
        _, copied, constant = shares.split(
            [self.count - self.copies - self.constants, self.copies, self.constants], dim=-1
        )
        if self.scale is not None:
            outputs = outputs + (copied @ self.scale).unsqueeze(-1) * hidden_states
        if self.constant is not None:
            outputs = outputs + constant @ self.constant
        return outputs
