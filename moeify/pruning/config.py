"""Options of prune and extract."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moeify.errors import ConfigError

__all__ = [
    "CALIBRATED",
    "CRITERIA",
    "Criterion",
    "ExtractConfig",
    "PruneConfig",
    "parse_experts",
]

Criterion = Literal["frequency", "gate", "ean", "reap", "aimer", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
CALIBRATED: tuple[Criterion, ...] = ("frequency", "gate", "ean", "reap")
"""Criteria that need a pass over text."""

_LAYER_ITEM = re.compile(r"(all|\d{1,6}):(\d{1,6}(?:,\d{1,6})*)")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Which experts leave a mixture and how the rest is written.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    keep: int | None = None
    """Experts that stay in each MoE layer."""
    ratio: float | None = None
    """Part of each layer's experts to drop, between 0 and 1, in place of ``keep``."""
    experts: str | None = None
    """Experts to drop by hand, layer by layer, as in 0:1,5;3:2,4 or all:1,5."""
    by: Criterion | None = None
    """Score that decides which experts stay; None takes reap with text or scores, else aimer."""
    dataset: str | None = None
    """Text for calibration: a .txt, .jsonl, .json, .csv or .parquet file, or a Hub id."""
    split: str = "train"
    """Split of the dataset; a local file is one split, train."""
    text_column: str = "text"
    """Column that holds the text."""
    max_tokens: int = 131072
    """Tokens to calibrate on at most."""
    seq_len: int | None = None
    """Tokens of a block; None takes 512, or the model's limit where that is less."""
    batch_size: int = 4
    """Blocks in a batch."""
    low_memory: bool | None = None
    """Run text through one layer at a time; None does so where the weights do not fit in memory."""
    scores: Path | None = None
    """File of scores: read where it is complete, written after calibration where it is not."""
    protect: bool = True
    """Keep super experts (arXiv 2507.23279), where calibration or the file of scores names them."""
    merge: bool = False
    """Average dropped experts into the kept ones nearest to them."""
    rescale: bool = False
    """Fold the growth of weights that are not renormalised into the down projections."""
    evaluate: bool = False
    """Measure held-out loss before, after, and after random pruning of the same size."""
    random_seeds: int = 3
    """Random prunings to compare with."""
    dense: bool = False
    """Write the dense checkpoint of the original family out of one expert a layer."""
    seed: int = 0
    """Seed of random scores and of the order in which texts are read."""
    max_shard_size: str = "5GB"
    """Largest size of a weights file."""
    revision: str | None = None
    """Branch, tag or commit, where the checkpoint is a Hub id."""
    force: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in CRITERIA:
            raise ConfigError(f"by {self.by!r} is unknown", f"one of: {', '.join(CRITERIA)}")
        self._check_amount()
        for option in ("max_tokens", "batch_size", "random_seeds", "seq_len"):
            value = getattr(self, option)
            if value is not None and value < 1:
                name = option.replace("_", "-")
                raise ConfigError(f"{name} must be positive, not {value}", f"leave --{name} out")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(
                f"the seed must lie between 0 and 2^63 - 1, not {self.seed}", "pass --seed 0"
            )
        self._check_combinations()

    def _check_amount(self) -> None:
        given = [name for name in ("keep", "ratio", "experts") if getattr(self, name) is not None]
        if len(given) != 1 and not (self.dense and not given):
            said = " and ".join(f"--{name}" for name in given) or "none of them is given"
            raise ConfigError(
                f"exactly one of --keep, --ratio and --experts says how many go: {said}",
                "pass --keep 4, --ratio 0.5 or --experts '0:1,5;1:2,3'",
            )
        if self.keep is not None and self.keep < 1:
            raise ConfigError(f"at least one expert must stay, not {self.keep}", "pass --keep 4")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ConfigError(
                f"the part of the experts to drop must lie between 0 and 1, not {self.ratio:g}",
                "pass --ratio 0.5",
            )
        if self.experts is not None:
            parse_experts(self.experts)

    def _check_combinations(self) -> None:
        if self.dense and self.keep not in (None, 1):
            raise ConfigError(
                f"a dense model has one feed-forward network a layer, not {self.keep}",
                "pass --keep 1 with --dense",
            )
        if self.needs_scores and self.dataset is None and self.scores is None:
            raise ConfigError(
                f"{self.by} needs text to score the experts on",
                "pass --dataset FILE or --scores FILE, or --by aimer, which needs none",
            )
        for option in ("merge", "rescale", "evaluate"):
            if getattr(self, option) and self.dense:
                name = {"evaluate": "eval"}.get(option, option)
                raise ConfigError(
                    f"--{name} has no meaning for a dense output", f"leave --{name} out"
                )
        if self.merge and self.rescale:
            raise ConfigError(
                "merging replaces the weights that --rescale would scale",
                "leave one of --merge and --rescale out",
            )
        if self.evaluate and self.dataset is None:
            raise ConfigError("--eval needs text to measure the loss on", "pass --dataset FILE")
        if self.rescale and self.dataset is None and self.scores is None:
            raise ConfigError(
                "--rescale needs the weights that experts get on text",
                "pass --dataset FILE or --scores FILE",
            )

    @property
    def criterion(self) -> Criterion:
        """The score that decides."""
        if self.by is not None:
            return self.by
        return "aimer" if self.dataset is None and self.scores is None else "reap"

    @property
    def needs_scores(self) -> bool:
        """Whether the criterion comes from a pass over text."""
        return self.experts is None and self.criterion in CALIBRATED

    @property
    def calibrates(self) -> bool:
        """Whether a pass over the dataset is worth its time, where there is one."""
        return self.needs_scores or self.rescale or self.merge


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Which expert, or mean of experts, becomes a dense checkpoint's feed-forward network."""

    expert: int = 0
    """Number of the expert, in every MoE layer."""
    experts: tuple[int, ...] = ()
    """Experts to average, in place of ``expert``."""
    weights: tuple[float, ...] = ()
    """Weight of each of ``experts`` in the mean; left out, all weigh the same."""
    max_shard_size: str = "5GB"
    """Largest size of a weights file."""
    revision: str | None = None
    """Branch, tag or commit, where the checkpoint is a Hub id."""
    force: bool = False
    """Replace an output that exists."""

    def __post_init__(self) -> None:
        if self.expert < 0:
            raise ConfigError(f"experts are counted from 0, not {self.expert}", "pass --expert 0")
        object.__setattr__(self, "experts", tuple(self.experts))
        object.__setattr__(self, "weights", tuple(self.weights))
        if any(expert < 0 for expert in self.experts):
            raise ConfigError(
                f"experts are counted from 0, not {min(self.experts)}", "pass --experts 0,1"
            )
        if len(set(self.experts)) != len(self.experts):
            raise ConfigError("an expert is named twice", "name each once, and weigh it instead")
        if self.weights and len(self.weights) != len(self.experts):
            raise ConfigError(
                f"{len(self.weights)} weights for {len(self.experts)} experts",
                "pass one for each of --experts, or leave --weights out",
            )
        if not all(math.isfinite(weight) for weight in self.weights) or (
            self.weights and sum(self.weights) <= 0
        ):
            raise ConfigError("weights must be numbers of a positive sum", "leave --weights out")

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        """Experts and their shares of the mean, which sum to 1."""
        if not self.experts:
            return ((self.expert, 1.0),)
        weights = self.weights or (1.0,) * len(self.experts)
        return tuple((e, w / sum(weights)) for e, w in zip(self.experts, weights, strict=True))


def parse_experts(text: str) -> dict[int | None, tuple[int, ...]]:
    """Experts by layer from ``0:1,5;3:2``; the key None stands for ``all``.

    Raises ``ConfigError`` for what is not of that form or names something twice.
    """
    chosen: dict[int | None, tuple[int, ...]] = {}
    for item in text.split(";"):
        match = _LAYER_ITEM.fullmatch(re.sub(r"\s", "", item))
        if match is None:
            raise ConfigError(
                f"experts {item.strip()!r} is not understood",
                "write layer:experts, as in --experts '0:1,5;3:2,4' or --experts 'all:1,5'",
            )
        layer = None if match[1] == "all" else int(match[1])
        numbers = tuple(sorted(int(number) for number in match[2].split(",")))
        if layer in chosen or len(set(numbers)) != len(numbers):
            raise ConfigError(f"experts {text!r} names something twice", "name each expert once")
        chosen[layer] = numbers
    return chosen
