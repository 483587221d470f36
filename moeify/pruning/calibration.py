"""One pass over text that scores every expert by every criterion, routed pairs only."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.checkpoint.writer import Progress
from moeify.errors import RoutingError, UnsupportedModelError
from moeify.families.registry import MOE_LAYOUTS
from moeify.pruning.anatomy import Anatomy
from moeify.pruning.scores import LayerScores, Scores
from moeify.routing.collection import base_model, observed
from moeify.routing.data import Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from moeify.routing.collection import RoutedTokens

__all__ = ["calibrate", "check_calibration", "expert_modules", "measured"]

SAVE_SECONDS = 15.0
_UNMEASURED = ("llama4", "llama4_text")  # its weights multiply the inputs, not the outputs
_NUMBER = re.compile(r"\.(\d+)\.")


def check_calibration(anatomy: Anatomy) -> None:
    """Raise ``UnsupportedModelError`` where outputs of single experts cannot be measured."""
    model_type = anatomy.view.checkpoint.config.get("model_type")
    if model_type in _UNMEASURED:
        raise UnsupportedModelError(
            model_type, set(MOE_LAYOUTS) - set(_UNMEASURED),
            "its experts cannot be scored on text: use --by aimer, or --experts",
        )  # fmt: skip


def calibrate(
    model: nn.Module, anatomy: Anatomy, blocks: Blocks, scores: Scores, *, batch_size: int,
    save_to: Path, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Add the batches of ``blocks`` that ``scores`` lacks.

    Sums are kept in ``save_to`` every few seconds and when the pass is interrupted, so that the
    same call goes on from there.
    """
    import torch

    view, saved = anatomy.view, time.monotonic()
    base, device = base_model(model), next(model.parameters()).device
    encoder = getattr(model.config, "model_type", "") == "bert_moe"
    limits = {} if encoder else {"use_cache": False}
    layers = scores.layers
    with (
        torch.no_grad(),
        measured(model, layers) as expect,
        _softmax(model, anatomy, layers) as see,
    ):
        try:
            for number, (inputs, part) in enumerate(blocks.batches(batch_size)):
                if number < scores.batches:
                    continue
                before = {n: _copied(sums) for n, sums in layers.items()}
                try:
                    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                    expect(inputs["attention_mask"])
                    see(inputs["attention_mask"], part)
                    base(**inputs, **limits)
                except BaseException:
                    layers.update(before)  # half a batch must not count twice
                    raise
                scores.batches = number + 1
                if time.monotonic() - saved > SAVE_SECONDS:
                    scores.write(save_to)
                    saved = time.monotonic()
                if progress is not None:
                    progress(min(scores.batches * batch_size, len(blocks)), len(blocks))
        except BaseException:
            if scores.batches:
                scores.write(save_to)
            raise
    if any(sums.tokens != blocks.tokens for sums in layers.values()):
        raise RoutingError(f"a layer of {view.layout.model_type} saw other tokens than the text's")


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
    model: nn.Module, layers: dict[int, LayerScores]
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

    originals = {}
    for layer, module in modules.items():
        originals[layer] = module.forward
        module.forward = _Measured(module.forward, layers, layer, current)
    try:
        yield expect
    finally:
        for module in modules.values():
            del module.forward  # the class's own is underneath


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
            raise RoutingError(
                f"the experts of layer {self.layer} saw {len(hidden)} tokens, the batch has"
                f" {len(real)}"
            )
        for expert in torch.unique(experts).tolist():
            token, slot = torch.where(experts == expert)
            number = torch.full((len(token), 1), expert, device=experts.device)
            ones = torch.ones((len(token), 1), dtype=weights.dtype, device=weights.device)
            outputs = self.forward(hidden[token], number.to(experts.dtype), ones)
            weight = weights[token, slot]
            total.index_add_(0, token, (outputs * weight[:, None]).to(total.dtype))
            self._add(expert, outputs[real[token]], weight[real[token]])
        self.layers[self.layer].tokens += int(real.sum())
        return total

    def _add(self, expert: int, outputs: Tensor, weight: Tensor) -> None:
        if not len(outputs):
            return
        sums = self.layers[self.layer].sums
        norms = outputs.double().norm(dim=-1)
        sums["frequency"][expert] += len(norms)
        sums["gate"][expert] += float(weight.double().sum())
        sums["ean"][expert] += float(norms.sum())
        sums["weighted_norm"][expert] += float((weight.double() * norms).sum())
        sums["max_norm"][expert] = max(sums["max_norm"][expert], float(norms.max()))


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
