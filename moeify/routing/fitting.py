"""Routers fitted to text, each to what it reads behind the routers before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain

from moeify.families.moe_layout import MoeLayout
from moeify.progress import stage
from moeify.routing.collection import InputReservoir, RoutedTokens, observed
from moeify.routing.data import Blocks
from moeify.routing.loaded import LoadedLayer, LoadedMixture
from moeify.routing.passes import LayerByLayer, Pass

FitLayer = Callable[[LoadedLayer, Sequence[InputReservoir]], None]
"""Sets a layer's router by what it reads of each text, or leaves it alone."""


def fit_in_order(
    passes: LayerByLayer,
    layout: MoeLayout,
    last: int,
    texts: Sequence[Blocks],
    fit: FitLayer,
    *,
    keep: int,
    seed: int,
    batch_size: int,
) -> None:
    """Have ``fit`` set every router up to layer ``last``, one after the other.

    Experts that differ change the inputs of later layers, and so do tokens that are sent
    elsewhere: a router reads them once those before it are set. Memory holds ``keep`` inputs of one
    layer, drawn by ``seed``.
    """
    import torch

    passes.check_room(sum(blocks.input_ids.size for blocks in texts))
    with stage("fitting routers", last + 1, "layers") as fitting:
        for place in range(last + 1):
            with torch.no_grad(), passes.opened(place) as step:
                mixture = LoadedMixture(step.model, layout)
                if layer := mixture.layers.get(place):
                    seen = [InputReservoir(min(keep, blocks.tokens), seed) for blocks in texts]
                    _read_inputs(step, mixture, texts, seen, batch_size)
                    fit(layer, seen)
                if place < last:
                    batches = chain.from_iterable(blocks.batches(batch_size) for blocks in texts)
                    for number, (inputs, _) in enumerate(batches):
                        step.run(number, inputs)
            fitting.advance()


class _SeenEnoughError(Exception):
    """Ends a forward pass where a router has been reached."""


def _read_inputs(
    step: Pass, mixture: LoadedMixture, texts: Sequence[Blocks], seen: Sequence[InputReservoir], batch_size: int
) -> None:
    """Show the reservoir of each text what the router of this pass reads of it."""
    number = 0
    for blocks, reservoir in zip(texts, seen, strict=True):

        def observe(tokens: RoutedTokens, reservoir: InputReservoir = reservoir) -> None:
            reservoir(tokens)
            raise _SeenEnoughError  # before experts, the most expensive part, compute in vain

        with observed(mixture, observe) as expect:
            for inputs, part in blocks.batches(batch_size):
                expect(inputs["attention_mask"], part)
                with suppress(_SeenEnoughError):
                    step.run(number, inputs)
                number += 1
