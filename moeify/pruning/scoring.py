"""Where scores come from: chance, the weights, a file, or a pass over text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.source import Source
from moeify.errors import ConfigError, DatasetError, RoutingError
from moeify.families.mixture import Mixture
from moeify.pruning.calibration import calibrate
from moeify.pruning.config import PruneConfig
from moeify.pruning.criteria import TEXT_SUMS, WEIGHT_SUMS, Criterion
from moeify.pruning.scores import LayerScores, Scores, checkpoint_fingerprint
from moeify.pruning.selection import random_scores
from moeify.pruning.weights import weight_sums
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, blocks_for
from moeify.routing.loading import load_model
from moeify.routing.passes import LayerByLayer, Passes, WholeModel

HELD_OUT_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True)
class Text:
    """Blocks to calibrate on, and blocks that calibration never sees."""

    fit: Blocks
    held_out: Blocks | None


def read_text(mixture: Mixture, config: PruneConfig) -> Text | None:
    """The text of ``config`` in blocks of tokens; None where it names none.

    A tenth is held out, also where nobody asks for the loss, so that scores fit a later --eval.
    """
    if config.dataset is None:
        return None
    data = DataConfig.of(config)
    blocks, _ = blocks_for(mixture.checkpoint, data, config.max_tokens)
    try:
        fit, held_out = blocks.split(HELD_OUT_FRACTION)
    except DatasetError:
        if config.evaluate:
            raise
        return Text(fit=blocks, held_out=None)
    return Text(fit=fit, held_out=held_out)


def stored_scores(mixture: Mixture, config: PruneConfig) -> Scores | None:
    """Complete scores from the file that ``config`` names; None where they are still to be made.

    Raises ``RoutingError`` for scores of another checkpoint and for incomplete ones that no
    dataset can complete.
    """
    if config.scores is None or (config.dataset is not None and not config.scores.exists()):
        return None
    scores = Scores.read(config.scores, mixture)
    if not scores.complete:
        if config.dataset is None:
            raise RoutingError(
                f"the calibration in {config.scores} was interrupted",
                f"pass --dataset {scores.dataset} to go on with it",
            )
        return None
    return scores


def expert_scores(
    by: Criterion, mixture: Mixture, scores: Scores | None, seed: int, layers: Sequence[int] | None = None
) -> dict[int, list[float]]:
    """What ``by`` says of every expert of every layer, or of ``layers``; weights are read where ``scores`` lack them.

    Raises ``RoutingError`` where ``scores`` hold less than it needs, and ``ConfigError`` where its
    formula gives no score.
    """
    layers = mixture.moe_layers if layers is None else layers
    known = {n: dict(scores.layers[n].sums if scores and n in scores.layers else {}) for n in layers}
    if by.reads_weights and not all(sums.keys() >= {*WEIGHT_SUMS} for sums in known.values()):
        for layer, sums in weight_sums(mixture, layers).items():
            known[layer] |= sums
    for layer, drawn in random_scores(mixture, seed, layers).items() if by.is_drawn else ():
        known[layer]["draw"] = np.array(drawn)
    for layer, sums in known.items():
        if missing := [name for name in by.needs if name not in sums]:
            raise RoutingError(
                f"the scores hold no sum {missing[0]!r} for layer {layer}, which {by.name} needs",
                "calibrate again: pass --dataset, and --scores with a new file",
            )
    return {layer: _values(by, sums, mixture.num_experts) for layer, sums in known.items()}


def _values(by: Criterion, sums: Mapping[str, NDArray[np.float64]], experts: int) -> list[float]:
    found = np.asarray(by.formula({name: sums[name] for name in by.needs}), np.float64)
    if found.shape != (experts,) or not np.isfinite(found).all():
        raise ConfigError(
            f"the criterion {by.name} gives {found.tolist()}, and not {experts} finite numbers",
            "mend its formula, or choose another with --by",
        )
    values: list[float] = found.tolist()
    return values


def text_scores(
    source: Source, mixture: Mixture, config: PruneConfig, text: Text, save_to: Path, *, by_layer: bool = False
) -> Scores:
    """Scores from ``text``, continued where an interrupted calibration in ``save_to`` ended.

    ``by_layer`` holds one layer's weights at a time, and what layers give in files.
    """
    states = save_to.with_name(f".{save_to.name.lstrip('.')}.states")
    passes: Passes = (
        WholeModel(load_model(source.folder)) if not by_layer else LayerByLayer(source.folder, mixture.layout, states)
    )
    data = f"{text.fit.fingerprint}-{config.batch}-{len(passes)}"
    scores = _begun(save_to, mixture, data)
    if scores is None or not _goes_on(passes, scores, text, config):
        scores = Scores(
            source=source.name,
            fingerprint=checkpoint_fingerprint(mixture),
            data=data,
            dataset=Path(config.dataset or "").name,
            layers={layer: LayerScores.empty(mixture.num_experts) for layer in mixture.moe_layers},
        )
    save_to.parent.mkdir(parents=True, exist_ok=True)
    calibrate(passes, mixture, text.fit, scores, batch_size=config.batch, save_to=save_to)
    if mixture.quantised is None:
        for layer, sums in weight_sums(mixture).items():
            scores.layers[layer].sums |= sums
    scores.complete = True
    shutil.rmtree(states, ignore_errors=True)
    return scores


def _goes_on(passes: Passes, scores: Scores, text: Text, config: PruneConfig) -> bool:
    """Whether what ``scores`` need from earlier layers is still there."""
    batches = math.ceil(len(text.fit) / config.batch)
    place = min(scores.batches // batches, len(passes) - 1)
    return not isinstance(passes, LayerByLayer) or passes.holds(place, batches)


def _begun(path: Path, mixture: Mixture, data: str) -> Scores | None:
    if not path.exists():
        return None
    try:
        scores = Scores.read(path, mixture)
    except RoutingError:
        return None  # left behind by a run on something else
    usable = not scores.complete and scores.data == data
    usable = usable and all(sums.sums.keys() >= {*TEXT_SUMS} for sums in scores.layers.values())
    return scores if usable else None
