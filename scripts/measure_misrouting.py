"""Where a data router loses what the experts know: in which layers, and where in a block.

    python scripts/measure_misrouting.py WORK [--seeds 3] [--setting ffn-base]

WORK is that of `measure_domains.py`, whose models and losses are read. Each row sends tokens to
their domain's own expert in some layers, or at some places of a block, and leaves the rest to the
routers: what it keeps above the first row is lost there. The table is Markdown, on stdout.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from domain_figures import losses_of, spread
from domain_mixtures import WAYS
from domain_models import BASE, DOMAINS
from measure_domains import SETTINGS, Experiment
from torch import Tensor
from train_demo import held_out_loss
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from moeify.families.registry import moe_layout
from moeify.routing.loaded import LoadedLayer, LoadedMixture, Route
from moeify.routing.loading import load_model

Where = Callable[[int, Tensor], Tensor]
"""From layer and places in the block [N, 1] to where the domain is known [N, 1]."""

START = 16
ROWS: dict[str, Where] = {
    "routers alone": lambda layer, place: place < 0,
    **{
        f"layer {known} known": lambda layer, place, known=known: (place >= 0) & (layer == known)
        for known in range(BASE.layers)
    },
    "all but layer 0 known": lambda layer, place: (place >= 0) & (layer > 0),
    f"first {START} tokens known": lambda layer, place: place < START,
    "the others known": lambda layer, place: place >= START,
}


def known_where(where: Where, expert: int) -> Route:
    """The routers' choice, and ``expert`` alone where the domain is known."""

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(len(experts))[:, None] % BASE.context
        known = where(layer.number, place)
        first = torch.zeros_like(weights)
        first[:, 0] = weights.sum(-1)
        # The second choice has no weight, but has to be another expert.
        alone = (expert + torch.arange(experts.shape[1])) % len(DOMAINS)
        return torch.where(known, first, weights), torch.where(known, alone, experts)

    return route


def kept(experiment: Experiment, setting: str, seed: int) -> dict[str, np.ndarray]:
    """Of each row, the part of every specialist's gain that is kept [D]."""
    _, tuned, rest = SETTINGS[setting]
    parts = experiment.parts(seed, tuned, rest)
    dense = experiment.steps(seed, tuned, ["base", *DOMAINS], parts, set())
    base, own = losses_of(dense, "base"), losses_of(dense, "own specialist")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "out")
        WAYS["data"](parts, folder)
        model = load_model(folder)
    layout, found = moe_layout(model.config.to_dict()), {}
    for name, where in ROWS.items():
        losses = []
        for expert, rows in enumerate(experiment.blocks.values()):
            with LoadedMixture(model, layout).rerouted(known_where(where, expert)):
                losses.append(held_out_loss(model, rows))
        found[name] = (base - np.array(losses)) / (base - own)
    return found


def main() -> int:
    """Measure every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--setting", default="ffn-base", choices=SETTINGS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    family = SETTINGS[options.setting][0]
    folder = options.work if family == "qwen3" else options.work / family
    experiment = Experiment(folder, family, float("inf"), None)
    seeds = [kept(experiment, options.setting, seed) for seed in range(options.seeds)]
    print(f"| | kept of {', '.join(DOMAINS)} | kept, mean |\n|---|---|---|")
    for name in ROWS:
        rows = np.array([found[name] for found in seeds])
        cells = ", ".join(f"{100 * value:.0f}" for value in rows.mean(0))
        print(f"| {name} | {cells} | {spread(rows.mean(1))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
