"""Passes over text that score every expert by every criterion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeify.checkpoint.interruption import Kept, keeping
from moeify.errors import RoutingError
from moeify.families.mixture import Mixture
from moeify.progress import Stage
from moeify.pruning.measuring import measured
from moeify.pruning.scores import LayerScores, Scores
from moeify.routing.collection import observed
from moeify.routing.data import Blocks
from moeify.routing.loaded import LoadedMixture
from moeify.routing.passes import Pass, Passes, walking

if TYPE_CHECKING:
    from torch import Tensor

    from moeify.routing.collection import RoutedTokens

SAVE_SECONDS = 15.0


def calibrate(
    passes: Passes, mixture: Mixture, blocks: Blocks, scores: Scores, *, batch_size: int, save_to: Path
) -> None:
    """Add the batches of ``blocks`` that ``scores`` lacks.

    Sums are kept in ``save_to`` every few seconds, after each of several passes, and when the work
    is interrupted, so that the same call goes on from there.
    """
    passes.check_room(blocks.input_ids.size)
    batches = math.ceil(len(blocks) / batch_size)
    with keeping(lambda: _interim(scores, save_to, len(passes) * batches)):
        _calibrate(passes, mixture, blocks, scores, batch_size=batch_size, save_to=save_to)
    if any(sums.tokens != blocks.tokens for sums in scores.layers.values()):
        model_type = mixture.layout.model_type
        raise RoutingError(f"a layer of {model_type} saw other tokens than the text's")


def _interim(scores: Scores, save_to: Path, batches: int) -> Kept | None:
    """What the next run goes on from."""
    if not scores.batches:
        return None
    part = f"{scores.batches} of {batches} batches"
    return Kept(what=f"{save_to} holds the scores of {part}, and the same command goes on from there")


def _calibrate(
    passes: Passes, mixture: Mixture, blocks: Blocks, scores: Scores, *, batch_size: int, save_to: Path
) -> None:
    batches = math.ceil(len(blocks) / batch_size)
    try:
        with walking("scoring experts", passes, len(blocks)) as scoring:
            for place in range(scores.batches // batches, len(passes)):
                scoring.done = place * len(blocks)
                with passes.opened(place) as step:
                    _walk(
                        step,
                        mixture,
                        blocks,
                        scores,
                        batches * place,
                        batch_size=batch_size,
                        save_to=save_to,
                        scoring=scoring,
                    )
                if len(passes) > 1:
                    scores.write(save_to)  # the next pass writes over what this one read
    except BaseException:
        if scores.batches:
            scores.write(save_to)
        raise


def _walk(
    step: Pass,
    mixture: Mixture,
    blocks: Blocks,
    scores: Scores,
    first: int,
    *,
    batch_size: int,
    save_to: Path,
    scoring: Stage,
) -> None:
    """One pass, whose first batch is number ``first`` of all passes'."""
    import torch

    layers, saved = scores.layers, time.monotonic()
    loaded = LoadedMixture(step.model, mixture.layout)
    with torch.no_grad(), measured(loaded, layers) as expect, _softmax(loaded, mixture, layers) as see:
        for number, (inputs, part) in enumerate(blocks.batches(batch_size)):
            scoring.done += len(part)
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
            scoring.reach(scoring.done)


def _copied(sums: LayerScores) -> LayerScores:
    return LayerScores(tokens=sums.tokens, sums={k: v.copy() for k, v in sums.sums.items()})


@contextmanager
def _softmax(
    loaded: LoadedMixture, mixture: Mixture, layers: dict[int, LayerScores]
) -> Iterator[Callable[[Tensor, Blocks | None], None]]:
    """Add up the routers' softmax where dropping experts makes the others' weights grow."""
    rule = mixture.layout.rule
    if rule.scores != "softmax" or rule.renormalises(mixture.config):
        yield lambda mask, part: None
        return

    def add(tokens: RoutedTokens) -> None:
        scores = tokens.logits.double().softmax(-1) if tokens.scores is None else tokens.scores.double()
        layers[tokens.layer].sums["probability"] += np.asarray(scores.sum(0))

    with observed(loaded, add) as expect:
        yield expect
