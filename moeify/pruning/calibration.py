"""One pass over text that scores every expert by every criterion, routed pairs only."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.checkpoint.writer import Progress
from moeify.errors import RoutingError
from moeify.families.base import MoeLayout
from moeify.pruning.anatomy import Anatomy
from moeify.pruning.scores import LayerScores, Scores
from moeify.routing.collection import base_model, observed
from moeify.routing.data import Blocks
from moeify.routing.passes import Pass, Passes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from moeify.routing.collection import RoutedTokens

__all__ = ["calibrate", "expert_modules", "measured"]

SAVE_SECONDS = 15.0
_NUMBER = re.compile(r"\.(\d+)\.")


def calibrate(
    passes: Passes, anatomy: Anatomy, blocks: Blocks, scores: Scores, *, batch_size: int,
    save_to: Path, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Add the batches of ``blocks`` that ``scores`` lacks.

    Sums are kept in ``save_to`` every few seconds, after each of several passes, and when the work
    is interrupted, so that the same call goes on from there.
    """
    batches = math.ceil(len(blocks) / batch_size)
    try:
        for place in range(scores.batches // batches, len(passes)):
            with passes.opened(place) as step:
                _walk(
                    step, anatomy, blocks, scores, batches * place, batch_size=batch_size,
                    save_to=save_to, progress=progress, total=len(passes) * len(blocks),
                )  # fmt: skip
            if len(passes) > 1:
                scores.write(save_to)  # the next pass writes over what this one read
    except BaseException:
        if scores.batches:
            scores.write(save_to)
        raise
    if any(sums.tokens != blocks.tokens for sums in scores.layers.values()):
        model_type = anatomy.view.layout.model_type
        raise RoutingError(f"a layer of {model_type} saw other tokens than the text's")


def _walk(
    step: Pass, anatomy: Anatomy, blocks: Blocks, scores: Scores, first: int, *, batch_size: int,
    save_to: Path, progress: Progress | None, total: int,
) -> None:  # fmt: skip
    """One pass, whose first batch is number ``first`` of all passes'."""
    import torch

    layers, saved = scores.layers, time.monotonic()
    with (
        torch.no_grad(),
        measured(step.model, anatomy.view.layout, layers) as expect,
        _softmax(step.model, anatomy, layers) as see,
    ):
        for number, (inputs, part) in enumerate(blocks.batches(batch_size)):
            if first + number < scores.batches:
                continue
            before = {n: _copied(sums) for n, sums in layers.items()}
            try:
                expect(inputs["attention_mask"])
                see(inputs["attention_mask"], part)
                step.run(number, inputs)
            except BaseException:
                layers.update(before)  # half a batch must not count twice
                raise
            scores.batches += 1
            if time.monotonic() - saved > SAVE_SECONDS:
                scores.write(save_to)
                saved = time.monotonic()
            if progress is not None:
                walked = first // math.ceil(len(blocks) / batch_size) * len(blocks)
                progress(walked + min((number + 1) * batch_size, len(blocks)), total)


def _copied(sums: LayerScores) -> LayerScores:
    return LayerScores(tokens=sums.tokens, sums={k: v.copy() for k, v in sums.sums.items()})


def expert_modules(model: nn.Module) -> dict[int, nn.Module]:
    """The module of all experts of each MoE layer, by the layer's number."""
    found: dict[int, nn.Module] = {}
    for name, module in base_model(model).named_modules():
        numbers = _NUMBER.findall(f".{name}.")
        if name.endswith(".experts") and numbers:
            found[int(numbers[0])] = module
    return found


@contextmanager
def measured(
    model: nn.Module, layout: MoeLayout, layers: dict[int, LayerScores]
) -> Iterator[Callable[[Tensor], None]]:
    """Let every expert run on its own tokens alone and add up what it gives.

    Yields a function that must be told each batch's attention mask [B, S]. The weights are those
    that the model passes to its experts, whatever router they come from. Raises ``RoutingError``
    where the model's experts are not where they are in transformers.
    """
    modules = expert_modules(model)
    if modules.keys() != layers.keys():
        raise RoutingError(
            f"{type(model).__name__} has experts in layers {sorted(modules)}, config.json in"
            f" {sorted(layers)}"
        )
    current: dict[str, Any] = {}

    def expect(mask: Tensor) -> None:
        current["real"] = mask.flatten().bool()

    kind = _WeighedInputs if layout.rule.weighs_inputs else _Measured
    originals = {layer: module.forward for layer, module in modules.items()}
    hooks = []
    for layer, module in modules.items():
        measuring = kind(module.forward, layers, layer, current)
        module.forward = measuring
        if isinstance(measuring, _WeighedInputs):
            hooks.append(_router_beside(model, module).register_forward_hook(measuring.routed))
    try:
        yield expect
    finally:
        for layer, module in modules.items():
            module.forward = originals[layer]
        for hook in hooks:
            hook.remove()


def _router_beside(model: nn.Module, experts: nn.Module) -> nn.Module:
    parents = (m for m in model.modules() if any(child is experts for child in m.children()))
    found: nn.Module = next(parents).router  # type: ignore[assignment]
    return found


class _Measured:
    """A layer's experts, one after the other on the tokens that visit them."""

    def __init__(
        self, forward: Callable[..., Tensor], layers: dict[int, LayerScores], layer: int,
        current: dict[str, Any],
    ) -> None:  # fmt: skip
        self.forward, self.layers, self.layer, self.current = forward, layers, layer, current

    def __call__(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """[N, H] through the experts [N, K] with weights [N, K]."""
        import torch

        real, total = self.current["real"], torch.zeros_like(hidden)
        if len(real) != len(hidden):
            raise _other_tokens(self.layer, len(hidden), len(real))
        for expert in torch.unique(experts).tolist():
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


@contextmanager
def _softmax(
    model: nn.Module, anatomy: Anatomy, layers: dict[int, LayerScores]
) -> Iterator[Callable[[Tensor, Blocks | None], None]]:
    """Add up the routers' softmax where dropping experts makes the others' weights grow."""
    layout = anatomy.view.layout
    rule = layout.rule
    if rule.scores != "softmax" or rule.renormalises(anatomy.view.checkpoint.config):
        yield lambda mask, part: None
        return

    def add(tokens: RoutedTokens) -> None:
        probabilities: torch.Tensor = tokens.logits.double().softmax(-1).sum(0)
        layers[tokens.layer].sums["probability"] += np.asarray(probabilities)

    with observed(model, layout, add) as expect:
        yield expect
