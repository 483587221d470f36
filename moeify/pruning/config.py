"""Options of prune and extract."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from moeify.errors import ConfigError
from moeify.provenance.config import ShardedOutput
from moeify.pruning.criteria import CRITERIA
from moeify.routing.config import MemoryOptions, check_seed
from moeify.tables import check_choices

_LAYER_ITEM = re.compile(r"(all|\d{1,6}):(\d{1,6}(?:,\d{1,6})*)")


@dataclass(frozen=True, kw_only=True)
class ScoredConfig(ShardedOutput, MemoryOptions):
    """By which scores experts are chosen, and from which text."""

    by: Annotated[str, CRITERIA] | None = None
    """Score that decides which experts stay; left out, reap with text or scores, else aimer."""
    dataset: str | None = None
    """Text to score on: files, a folder or a glob, or a Hub id, with :NAME for one of its configurations."""
    split: str = "train"
    """Split of the dataset; files are one split, train, and folders tell splits by names."""
    text_column: str | None = None
    """Column that holds text or conversations; left out, text, messages, conversations, or prompt and completion."""
    max_tokens: int = 131072
    """Tokens to calibrate on at most."""
    seq_len: int | None = None
    """Tokens of a block; left out, 512 or the model's limit where that is less."""
    batch: int = 4
    """Blocks in a batch."""
    scores: Path | None = None
    """File of scores: read where it is complete, written after calibration where it is not."""
    protect: bool = True
    """Keep super experts (arXiv 2507.23279), where calibration or the file of scores names them."""
    seed: int = 0
    """Seed of random scores and of the order in which texts are read."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig(ScoredConfig):
    """Which experts leave a mixture and how the rest is written.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    keep: int | None = None
    """Experts that stay in each MoE layer."""
    ratio: float | None = None
    """Part of each layer's experts to drop, between 0 and 1, in place of ``keep``."""
    drop: str | None = None
    """Experts to drop by hand, layer by layer, as in 0:1,5;3:2,4 or all:1,5."""
    merge: bool = False
    """Average dropped experts into the kept ones nearest to them."""
    rescale: bool = False
    """Fold the growth of weights that are not renormalised into the down projections."""
    evaluate: bool = False
    """Measure held-out loss before, after, and after random pruning of the same size."""
    assistant_only: bool = False
    """Measure it on what assistants say in conversations, and on nothing else."""
    mtp: bool = True
    """Keep layers for further tokens (multi-token prediction), their experts cut like the others."""
    random_seeds: int = 3
    """Random prunings to compare with."""
    dense: bool = False
    """Write the dense checkpoint of the original family out of one expert a layer."""

    def __post_init__(self) -> None:
        check_choices(self)
        self._check_amount()
        for option in ("max_tokens", "batch", "random_seeds", "seq_len"):
            value = getattr(self, option)
            if value is not None and value < 1:
                name = option.replace("_", "-")
                raise ConfigError(f"{name} must be positive, not {value}", f"leave --{name} out")
        check_seed(self.seed)
        self._check_combinations()

    def _check_amount(self) -> None:
        given = [name for name in ("keep", "ratio", "drop") if getattr(self, name) is not None]
        if len(given) != 1 and not (self.dense and not given):
            said = " and ".join(f"--{name}" for name in given) or "none of them is given"
            raise ConfigError(
                f"exactly one of --keep, --ratio and --drop says how many go: {said}",
                "pass --keep 4, --ratio 0.5 or --drop '0:1,5;1:2,3'",
            )
        if self.keep is not None and self.keep < 1:
            raise ConfigError(f"at least one expert must stay, not {self.keep}", "pass --keep 4")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ConfigError(
                f"the part of the experts to drop must lie between 0 and 1, not {self.ratio:g}", "pass --ratio 0.5"
            )
        if self.drop is not None:
            parse_experts(self.drop)

    def _check_combinations(self) -> None:
        if self.dense and self.keep not in (None, 1):
            raise ConfigError(
                f"a dense model has one feed-forward network a layer, not {self.keep}", "pass --keep 1 with --dense"
            )
        if self.needs_scores and self.dataset is None and self.scores is None:
            raise ConfigError(
                f"{self.by} needs text to score the experts on",
                "pass --dataset FILE or --scores FILE, or --by aimer, which needs none",
            )
        for option in ("merge", "rescale", "evaluate"):
            if getattr(self, option) and self.dense:
                name = {"evaluate": "eval"}.get(option, option)
                raise ConfigError(f"--{name} has no meaning for a dense output", f"leave --{name} out")
        if self.merge and self.rescale:
            raise ConfigError(
                "merging replaces the weights that --rescale would scale", "leave one of --merge and --rescale out"
            )
        if self.assistant_only and not self.evaluate:
            raise ConfigError("--assistant-only says what --eval measures", "pass --eval, or leave it out")
        if self.evaluate and self.dataset is None:
            raise ConfigError("--eval needs text to measure the loss on", "pass --dataset FILE")
        if self.rescale and self.dataset is None and self.scores is None:
            raise ConfigError(
                "--rescale needs the weights that experts get on text", "pass --dataset FILE or --scores FILE"
            )

    @property
    def criterion(self) -> str:
        """The score that decides."""
        if self.by is not None:
            return self.by
        return "aimer" if self.dataset is None and self.scores is None else "reap"

    @property
    def needs_scores(self) -> bool:
        """Whether the criterion comes from a pass over text."""
        return self.drop is None and CRITERIA[self.criterion].reads_text

    @property
    def calibrates(self) -> bool:
        """Whether a pass over the dataset is worth its time, where there is one."""
        return self.needs_scores or self.rescale or self.merge


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ScoredConfig):
    """Which expert, or mean of experts, becomes a dense checkpoint's feed-forward network.

    With a score, text or a file of scores each layer's best expert does, as in pruning to one.
    """

    expert: int | tuple[int, ...] | None = None
    """Number of the expert in every MoE layer, or of those to average; left out, 0."""
    shares: tuple[float, ...] = ()
    """Share of each ``expert`` in the mean; left out, all weigh the same."""

    def __post_init__(self) -> None:
        if isinstance(self.expert, int):
            object.__setattr__(self, "expert", (self.expert,))
        elif self.expert is not None:
            object.__setattr__(self, "expert", tuple(self.expert) or None)
        object.__setattr__(self, "shares", tuple(self.shares))
        if self.scored and (self.expert is not None or self.shares):
            given = "--expert" if self.expert is not None else "--shares"
            raise ConfigError(
                f"{given} has no use where a score chooses the experts",
                f"leave {given} out, or --by, --dataset and --scores",
            )
        _ = self.pruning  # refuses what pruning refuses
        numbers = self.numbers
        if min(numbers) < 0:
            raise ConfigError(f"experts are counted from 0, not {min(numbers)}", "pass --expert 0")
        if len(set(numbers)) != len(numbers):
            raise ConfigError("an expert is named twice", "name each once, and weigh it instead")
        if self.shares and len(self.shares) != len(numbers):
            raise ConfigError(
                f"{len(self.shares)} shares for {len(numbers)} experts",
                "pass one for each --expert, or leave --shares out",
            )
        if not all(map(math.isfinite, self.shares)) or (self.shares and sum(self.shares) <= 0):
            raise ConfigError("shares must be numbers of a positive sum", "leave --shares out")

    @property
    def scored(self) -> bool:
        """Whether a score chooses the experts."""
        return any(given is not None for given in (self.by, self.dataset, self.scores))

    @property
    def pruning(self) -> PruneConfig:
        """The pruning that leaves each layer's best expert."""
        shared = {option.name: getattr(self, option.name) for option in fields(ScoredConfig)}
        return PruneConfig(dense=True, **shared)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The experts by number, as they were named."""
        return self.expert if isinstance(self.expert, tuple) else (self.expert or 0,)

    @property
    def mean(self) -> tuple[tuple[int, float], ...]:
        """Experts and their shares of the mean, which sum to 1."""
        shares = self.shares or (1.0,) * len(self.numbers)
        return tuple((e, s / sum(shares)) for e, s in zip(self.numbers, shares, strict=True))


def parse_experts(text: str) -> dict[int | None, tuple[int, ...]]:
    """Experts by layer from ``0:1,5;3:2``; the key None stands for ``all``.

    Raises ``ConfigError`` for what is not of that form or names something twice.
    """
    chosen: dict[int | None, tuple[int, ...]] = {}
    for item in text.split(";"):
        match = _LAYER_ITEM.fullmatch(re.sub(r"\s", "", item))
        if match is None:
            raise ConfigError(
                f"drop {item.strip()!r} is not understood",
                "write layer:experts, as in --drop '0:1,5;3:2,4' or --drop 'all:1,5'",
            )
        layer = None if match[1] == "all" else int(match[1])
        numbers = tuple(sorted(int(number) for number in match[2].split(",")))
        if layer in chosen or len(set(numbers)) != len(numbers):
            raise ConfigError(f"drop {text!r} names something twice", "name each expert once")
        chosen[layer] = numbers
    return chosen
