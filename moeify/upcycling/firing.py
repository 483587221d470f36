"""Neurons dealt to slices by when they fire: those that text excites together share a slice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.checkpoint.gather import Index
from moeify.errors import RoutingError
from moeify.families.base import DenseLayout
from moeify.families.dense_checkpoint import Dense
from moeify.routing.clustering import balanced_kmeans
from moeify.routing.collection import InputReservoir
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, blocks_for
from moeify.routing.loaded import layer_stack
from moeify.routing.passes import passes_over, walking
from moeify.upcycling.config import UpcycleConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS = 1024
"""Tokens that neurons are compared on: a layer's take 1,024 x F values."""
_BATCH = 8


def firing_text(view: Dense, config: UpcycleConfig) -> Blocks:
    """The text that neurons are compared on, tokenised; raises ``MoeifyError``."""
    assert config.dataset is not None, "checked with the options"
    data = DataConfig.of(config, domain_column=None)
    return blocks_for(view.checkpoint, data, config.fit_tokens)[0]


def neurons_by_firing(
    view: Dense, blocks: Blocks, config: UpcycleConfig, layers: Collection[int]
) -> dict[int, tuple[Index, ...]]:
    """The neurons of each slice of each of ``layers``, found in one run of the dense model over ``blocks``."""
    import torch

    found: dict[int, tuple[Index, ...]] = {}
    with (
        passes_over(view.checkpoint, view.layout, low_memory=config.low_memory) as passes,
        walking("watching neurons", passes, len(blocks)) as watching,
    ):
        passes.check_room(blocks.input_ids.size)
        for place in range(len(passes)):
            seen = InputReservoir(min(_TOKENS, blocks.tokens), config.seed)
            with (
                torch.no_grad(),
                passes.opened(place) as step,
                _watched(step.model, view.layout, layers, seen) as expect,
            ):
                for number, (inputs, part) in enumerate(blocks.batches(_BATCH)):
                    expect(inputs["attention_mask"])
                    step.run(number, inputs)
                    watching.advance(len(part))
            for layer in seen.layers:
                found[layer] = dealt(seen.inputs(layer), config.slices, config.seed + layer)
    return found


@contextmanager
def _watched(
    model: nn.Module, layout: DenseLayout, layers: Collection[int], seen: InputReservoir
) -> Iterator[Callable[[Tensor], None]]:
    """Show ``seen`` what the last projections of ``layers`` read, without padding, whose mask is told before."""
    down = next(part.name for part in layout.ffn if part.role == "down").removesuffix(".weight")
    real: list[Tensor] = []

    def watch(layer: int) -> Callable[[Any, tuple[Any, ...]], None]:
        def see(_: Any, given: tuple[Any, ...]) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1])
            if len(rows) != len(real[0]):
                raise RoutingError(
                    f"the feed-forward network of layer {layer} saw {len(rows)} tokens, the batch has {len(real[0])}",
                    "set chunk_size_feed_forward in config.json to 0, or leave --slice-by out",
                )
            seen.add(layer, rows[real[0].to(rows.device)], None)

        return see

    def expect(mask: Tensor) -> None:
        real[:] = [mask.flatten().bool()]

    stack = list(layer_stack(model, layout.layer).children())
    hooks = [stack[n].get_submodule(down).register_forward_pre_hook(watch(n)) for n in layers]
    try:
        yield expect
    finally:
        for hook in hooks:
            hook.remove()


def dealt(activations: Tensor, slices: int, seed: int) -> tuple[Index, ...]:
    """As many neurons for each slice, those together that ``activations`` [T, F] show to fire together.

    Balanced clusters of the neurons by their centred activations of unit length (co-activation as in MoEfication,
    arXiv 2110.01786, section 3.2); a slice that is full leaves a neuron to the next best.
    """
    # [T, F] -> [F, T]
    points = (activations - activations.mean(0)).T
    points = points / points.norm(dim=1, keepdim=True).clamp_min(1e-12)
    scores = (points @ balanced_kmeans(points, slices, seed).T).numpy()
    ranked = np.argsort(-scores, axis=1, kind="stable")
    best = np.take_along_axis(scores, ranked, axis=1)
    places: list[list[int]] = [[] for _ in range(slices)]
    size = len(scores) // slices
    for neuron in np.argsort(best[:, 1] - best[:, 0], kind="stable").tolist():  # the surest first
        next(places[n] for n in ranked[neuron] if len(places[n]) < size).append(neuron)
    return tuple(np.sort(np.array(place, np.int64)) for place in places)
