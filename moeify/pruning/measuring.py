"""What single experts give on the tokens that visit them, added up while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from moeify.errors import RoutingError
from moeify.pruning.scores import LayerScores
from moeify.routing.loaded import LoadedMixture, replaced

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def measured(mixture: LoadedMixture, layers: dict[int, LayerScores]) -> Iterator[Callable[[Tensor], None]]:
    """Let every expert run on its own tokens alone and add up what it gives.

    Yields a function that must be told each batch's attention mask [B, S]. The weights are those
    that the model passes to its experts, whatever router they come from.
    """
    current: dict[str, Any] = {}

    def expect(mask: Tensor) -> None:
        current["real"] = mask.flatten().bool()

    kind = _WeighedInputs if mixture.layout.rule.weighs_inputs else _Measured
    with ExitStack() as undone:
        for number, layer in mixture.layers.items():
            measuring = kind(layer.experts.forward, layers, number, current)
            undone.enter_context(replaced(layer.experts, measuring))
            if isinstance(measuring, _WeighedInputs):
                undone.callback(layer.router.register_forward_hook(measuring.routed).remove)
        yield expect


class _Measured:
    """A layer's experts, one after the other on the tokens that visit them."""

    def __init__(
        self, forward: Callable[..., Tensor], layers: dict[int, LayerScores], layer: int, current: dict[str, Any]
    ) -> None:
        self.forward, self.layers, self.layer, self.current = forward, layers, layer, current

    def __call__(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """[N, H] through the experts [N, K] with weights [N, K]."""
        import torch

        real, total = self.current["real"], torch.zeros_like(hidden)
        if len(real) != len(hidden):
            raise _other_tokens(self.layer, len(hidden), len(real))
        count = len(self.layers[self.layer].sums["frequency"])
        for expert in torch.unique(experts[experts < count]).tolist():  # null ones have the number after the last
            token, slot = torch.where(experts == expert)
            number = torch.full((len(token), 1), expert, device=experts.device)
            ones = torch.ones((len(token), 1), dtype=weights.dtype, device=weights.device)
            outputs = self.forward(hidden[token], number.to(experts.dtype), ones)
            weight = weights[token, slot]
            total.index_add_(0, token, (outputs * weight[:, None]).to(total.dtype))
            norms, weight = outputs[real[token]].double().norm(dim=-1), weight[real[token]]
            _tally(self.layers[self.layer], expert, weight, norms, weight.double() * norms)
        self.layers[self.layer].tokens += int(real.sum())
        return total


class _WeighedInputs(_Measured):
    """The same where weights multiply inputs: f_j(g_j x) is what an expert adds (Llama 4).

    Its norm stands for ||f_j|| and for g_j ||f_j||. The model runs every expert on every token, as
    rows of zeros where it is not chosen; here rows that count are packed together, as many for
    each expert as the busiest has.
    """

    weights: Tensor
    chosen: Tensor

    def routed(self, router: Any, _: Any, out: tuple[Tensor, Tensor]) -> None:
        """Keep what the router gave, weights [N, E] and logits [N, E], and which it took."""
        import torch

        self.weights, logits = out
        best = logits.topk(router.top_k, dim=-1).indices
        self.chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True)

    def __call__(self, hidden: Tensor, *_: Any) -> Tensor:
        """[E x N, H], weighed, through the experts one after the other."""
        import torch

        real, weights = self.current["real"], self.weights
        if len(real) != len(weights):
            raise _other_tokens(self.layer, len(weights), len(real))
        inputs = hidden.view(weights.shape[1], len(weights), -1)
        tokens = [torch.where(column)[0] for column in self.chosen.T]
        packed = inputs.new_zeros(len(tokens), max(map(len, tokens)), inputs.shape[-1])
        for expert, mine in enumerate(tokens):
            packed[expert, : len(mine)] = inputs[expert, mine]
        outputs = self.forward(packed.flatten(0, 1)).view_as(packed)
        total = torch.zeros_like(inputs)
        for expert, mine in enumerate(tokens):
            total[expert, mine] = outputs[expert, : len(mine)]
            norms = outputs[expert, : len(mine)][real[mine]].double().norm(dim=-1)
            weight = weights[mine, expert][real[mine]]
            _tally(self.layers[self.layer], expert, weight, norms, norms)
        self.layers[self.layer].tokens += int(real.sum())
        return total.flatten(0, 1)


def _tally(scores: LayerScores, expert: int, weight: Tensor, norms: Tensor, added: Tensor) -> None:
    """Add tokens [T] of one expert: their weights, norms of outputs, and norms of what is added."""
    if not len(norms):
        return
    sums = scores.sums
    sums["frequency"][expert] += len(norms)
    sums["gate"][expert] += float(weight.double().sum())
    sums["ean"][expert] += float(norms.sum())
    sums["weighted_norm"][expert] += float(added.sum())
    sums["max_norm"][expert] = max(sums["max_norm"][expert], float(norms.max()))


def _other_tokens(layer: int, seen: int, expected: int) -> RoutingError:
    return RoutingError(f"the experts of layer {layer} saw {seen} tokens, the batch has {expected}")
