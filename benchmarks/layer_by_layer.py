"""What commands that read text cost layer by layer, over a plain pass of that kind."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from moeify.checkpoint.reader import Checkpoint
from moeify.families.registry import moe_layout
from moeify.pruning.calibration import calibrate
from moeify.pruning.opening import open_prunable
from moeify.pruning.scores import LayerScores, Scores, checkpoint_fingerprint
from moeify.routing.collection import collect
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, blocks_for
from moeify.routing.fitting import fit_in_order
from moeify.routing.passes import LayerByLayer
from moeify.routing.statistics import RoutingStatistics

_BATCH = 4


def plain(folder: Path, blocks: Blocks) -> None:
    """Every layer loaded once, its text through it, what it gives kept in memory."""
    passes = LayerByLayer(folder, moe_layout(Checkpoint.open(folder).config))
    for place in range(len(passes)):
        with torch.no_grad(), passes.opened(place) as step:
            for number, (inputs, _) in enumerate(blocks.batches(_BATCH)):
                step.run(number, inputs)


def inspected(folder: Path, blocks: Blocks) -> None:
    """As ``inspect --dataset`` does it."""
    layout = moe_layout(Checkpoint.open(folder).config)
    with tempfile.TemporaryDirectory() as scratch:
        passes = LayerByLayer(folder, layout, Path(scratch))
        collect(passes, layout, blocks, RoutingStatistics(), batch_size=_BATCH)


def pruned(folder: Path, blocks: Blocks) -> None:
    """As ``prune --by reap`` does it."""
    mixture = open_prunable(Checkpoint.open(folder))
    scores = Scores(
        source="",
        fingerprint=checkpoint_fingerprint(mixture),
        data="",
        dataset="",
        layers={n: LayerScores.empty(mixture.num_experts) for n in mixture.moe_layers},
    )
    with tempfile.TemporaryDirectory() as scratch:
        passes = LayerByLayer(folder, mixture.layout, Path(scratch, "states"))
        save_to = Path(scratch, "scores.json")
        calibrate(passes, mixture, blocks, scores, batch_size=_BATCH, save_to=save_to)


def fitted(folder: Path, blocks: Blocks) -> None:
    """As ``warmup --steps 0`` walks for its fit, the fit itself left out."""
    checkpoint = Checkpoint.open(folder)
    layout = moe_layout(checkpoint.config)
    with tempfile.TemporaryDirectory() as scratch:
        fit_in_order(
            LayerByLayer(folder, layout, Path(scratch)),
            layout,
            max(layout.moe_layers(checkpoint.config)),
            [blocks],
            lambda layer, seen: None,
            keep=blocks.tokens,
            seed=0,
            batch_size=_BATCH,
        )


def seconds(work: Callable[[Path, Blocks], None], folder: Path, blocks: Blocks) -> float:
    """CPU seconds, which other processes change little."""
    started = time.process_time()
    work(folder, blocks)
    return time.process_time() - started


def main() -> None:
    """Print the ratio of each command, median of rounds in which all of them run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    data = DataConfig(dataset=given.dataset, seq_len=given.seq_len)
    blocks, _ = blocks_for(Checkpoint.open(given.checkpoint), data, given.tokens)
    works = (plain, inspected, pruned, fitted)
    rounds = [[seconds(work, given.checkpoint, blocks) for work in works] for _ in range(given.rounds + 1)][
        1:
    ]  # the first one reads files
    for place, work in enumerate(works):
        taken = statistics.median(one[place] for one in rounds)
        ratio = statistics.median(one[place] / one[0] for one in rounds)
        print(f"{work.__name__:10} {taken:6.2f} s  {ratio:.2f} x")


if __name__ == "__main__":
    main()
