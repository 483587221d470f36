"""What routers of different families take the best of, recomputed from their logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.families.moe_layout import RouterRule

if TYPE_CHECKING:
    from torch import Tensor

Choice = dict[str, "Tensor | None"]


def in_slices(values: Tensor, slices: int) -> Tensor:
    """What counts experts or choices along its last axis, [..., E] as [..., G, E / G]."""
    return values.reshape(*values.shape[:-1], slices, values.shape[-1] // slices)


def visits(experts: Tensor, values: Tensor, num_experts: int) -> Tensor:
    """``values`` [T, K] of chosen ``experts`` [T, K] by expert [T, E], without null ones, whose number is E."""
    empty = values.new_zeros(len(experts), num_experts + 1)
    return empty.scatter_(1, experts, values)[:, :num_experts]


def choice(
    rule: RouterRule, groups: tuple[int, int] | None, bias: Tensor | None, logits: Tensor, slices: int = 1
) -> Choice:
    """``scores`` and ``selection`` of ``RoutedTokens`` for ``logits`` [T, E].

    Both are None for families that choose by the softmax of the logits alone. ``groups`` are how
    many there are and how many a token keeps; in each of ``slices`` the logits choose by themselves.
    """
    if slices > 1:
        inside = in_slices(logits, slices).softmax(-1).flatten(-2)
        return {"scores": inside / slices, "selection": None if bias is None else inside + bias.detach().to(inside)}
    if rule.scores != "sigmoid" and bias is None and groups is None:
        return {"scores": None, "selection": None}
    raw = logits.sigmoid() if rule.scores == "sigmoid" else logits.softmax(-1)
    selection = raw if bias is None else raw + bias.detach().to(raw).flatten()
    if groups is not None:
        selection = _keep_groups(selection, *groups, rule.group_best)
    return {"scores": raw / raw.sum(-1, keepdim=True), "selection": selection}


def _keep_groups(selection: Tensor, total: int, kept: int, best: int) -> Tensor:
    """-inf outside the ``kept`` groups whose ``best`` best scores are largest.

    One in DeepSeek-V2, arXiv 2405.04434, section 2.2.2; two in V3, arXiv 2412.19437, section 2.1.2.
    """
    import torch

    # [T, E] -> [T, G, E / G] -> [T, G]
    grouped = selection.reshape(len(selection), total, -1)
    sums = grouped.topk(min(best, grouped.shape[-1]), dim=-1)[0].sum(-1)
    chosen = sums.topk(kept, dim=-1)[1]
    keep = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, chosen, True)
    dropped: Tensor = grouped.masked_fill(~keep[:, :, None], float("-inf")).flatten(-2)
    return dropped
