"""What routers of different families take the best of, recomputed from their logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moeify.families.base import Config, MoeLayout, RouterRule

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["best_first", "chooser", "selection_bias"]

Choice = dict[str, "Tensor | None"]


def chooser(rule: RouterRule, config: Config, bias: Tensor | None) -> Callable[[Tensor], Choice]:
    """A function from logits [T, E] to ``scores`` and ``selection`` of ``RoutedTokens``.

    Both are None for families that choose by the softmax of the logits alone.
    """
    groups = rule.group_counts(config)
    if rule.scores != "sigmoid" and bias is None:
        return lambda _: {"scores": None, "selection": None}

    def choose(logits: Tensor) -> Choice:
        raw = logits.sigmoid() if rule.scores == "sigmoid" else logits.softmax(-1)
        selection = raw if bias is None else raw + bias
        if groups is not None:
            selection = _keep_groups(selection, *groups)
        return {"scores": raw / raw.sum(-1, keepdim=True), "selection": selection}

    return choose


def _keep_groups(selection: Tensor, total: int, kept: int) -> Tensor:
    """-inf outside the ``kept`` groups whose two best scores are largest (DeepSeek-V3).

    arXiv 2412.19437, section 2.1.2.
    """
    import torch

    # [T, E] -> [T, G, E / G] -> [T, G]
    grouped = selection.reshape(len(selection), total, -1)
    sums = grouped.topk(min(2, grouped.shape[-1]), dim=-1)[0].sum(-1)
    best = sums.topk(kept, dim=-1)[1]
    keep = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, best, True)
    dropped: Tensor = grouped.masked_fill(~keep[:, :, None], float("-inf")).flatten(-2)
    return dropped


def selection_bias(model: nn.Module, router: nn.Module, layout: MoeLayout) -> Tensor | None:
    """The bias [E] that a loaded model adds for choosing, inside the router or beside it."""
    if layout.rule.selection_bias is None:
        return None
    wanted = layout.rule.selection_bias.rpartition(".")[2]
    parents = [m for m in model.modules() if any(child is router for child in m.children())]
    for module in (router, *parents):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.rpartition(".")[2] == wanted:
                return tensor.detach().float().cpu().flatten()
    return None


def best_first(out: tuple[Any, ...], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, weights and experts of a router's output, the expert with most weight first.

    Llama 4's routers return a weight for every expert, zero for those not chosen, and the logits.
    """
    if len(out) == 2:
        every, logits = out
        experts = logits.topk(top_k, dim=-1)[1]
        return logits, every.gather(1, experts), experts
    logits, weights, experts = out
    order = weights.argsort(dim=-1, descending=True, stable=True)
    return logits, weights.gather(1, order), experts.gather(1, order)
