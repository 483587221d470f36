"""Options of inspect."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from moeify.errors import ConfigError
from moeify.routing.config import DataConfig, MemoryOptions
from moeify.routing.rules import ROUTING_RULES

_LONGEST_PATH = 4096
IMAGE_ENDINGS = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(MemoryOptions):
    """How deep to look, on what text, and which pictures to draw.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    weights: bool = False
    """Read routers and experts: norms, similarities, duplicates, NaN."""
    reference: str | None = None
    """Dense checkpoint to compare with: how far experts are from its feed-forward networks."""
    dataset: str | None = None
    """Text to route: files, a folder or a glob, or a Hub id, with :NAME for one of its configurations."""
    split: str = "train"
    """Split of the dataset; files are one split, train, and folders tell splits by names."""
    text_column: str | None = None
    """Column that holds text or conversations; left out, text, messages, conversations, or prompt and completion."""
    domain_column: str | None = None
    """Column that names each text's domain."""
    streaming: bool = False
    """Read a dataset while it downloads instead of downloading all of it first."""
    max_tokens: int = 50_000
    """Tokens to route at most."""
    seq_len: int | None = None
    """Tokens of a block; left out, 512 or the model's limit where that is less."""
    batch: int = 8
    """Blocks in a batch."""
    vocabulary: bool = False
    """Also count which tokens each expert sees most."""
    against: str | None = None
    """Second checkpoint whose routing of the same text is compared."""
    routing: tuple[str, ...] = ()
    """Rules to measure the loss under, beside the routers': hash, random, round-robin, least-loaded, static."""
    capacity_factor: float | None = None
    """Measure what experts would leave out with room for so many times their even share of a batch, and the loss."""
    text: str | None = None
    """Show where each token of this text goes, by the first of its experts."""
    tokens: bool = False
    """Show where each token of the dataset's first texts goes."""
    verify: bool = False
    """Read every file and hold it against the checksum recorded in moeify.json."""
    revision: str | None = None
    """Branch, tag or commit, where the checkpoint is a Hub id."""

    def __post_init__(self) -> None:
        given = self.routing.split(",") if isinstance(self.routing, str) else self.routing
        object.__setattr__(self, "routing", tuple(given))
        for option in ("max_tokens", "batch"):
            if not 1 <= getattr(self, option) <= 1 << 40:
                name = option.replace("_", "-")
                raise ConfigError(
                    f"{name} must be a positive number, not {getattr(self, option)}", f"leave --{name} out"
                )
        for rule in self.routing:
            if rule not in ROUTING_RULES:
                raise ConfigError(
                    f"there is no rule {rule!r} to route by", f"--routing takes {', '.join(ROUTING_RULES)}"
                )
        factor = self.capacity_factor
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise ConfigError(f"the capacity factor must be positive, not {factor:g}", "try --capacity-factor 1.25")
        if self.reference is not None and not self.weights:
            raise ConfigError("--reference measures the weights' distance from a dense checkpoint", "add --weights")
        self._check_text()
        if self.dataset is not None:
            _ = self.data  # refuses what can be known to be wrong before any file is opened

    def _check_text(self) -> None:
        for option in ("domain_column", "against", "vocabulary", "tokens", "low_memory", "routing", "capacity_factor"):
            enough = self.dataset is not None or (option == "low_memory" and self.text is not None)
            if getattr(self, option) not in (None, False, ()) and not enough:
                name = option.replace("_", "-")
                raise ConfigError(f"--{name} needs text to route", "add --dataset FILE")
        if self.text is None:
            return
        if self.tokens:
            raise ConfigError("--text and --tokens both say which tokens are shown", "leave one of them out")
        if not self.text.strip():
            raise ConfigError("--text is empty", "pass the text itself")
        if any("\ud800" <= c <= "\udfff" for c in self.text):
            raise ConfigError("--text holds bytes that are no UTF-8", "convert the text to UTF-8")
        if len(self.text) < _LONGEST_PATH and os.path.isfile(self.text):
            raise ConfigError(
                f"--text takes the text itself, and {self.text} is a file", f"pass --dataset {self.text} --tokens"
            )

    @property
    def routes(self) -> bool:
        """Whether text runs through the model."""
        return self.dataset is not None or self.text is not None

    @property
    def data(self) -> DataConfig:
        """Which text is read, as the routing layer wants to know it."""
        return DataConfig.of(self, dataset=self.dataset or "")


def check_image(path: Path) -> None:
    """Raise ``ConfigError`` unless ``path`` ends like a picture that can be drawn."""
    if path.suffix.lower() not in IMAGE_ENDINGS:
        raise ConfigError(
            f"--plot {path.name} has no ending that says which picture to draw", f"one of: {', '.join(IMAGE_ENDINGS)}"
        )


def check_drawable(path: Path, config: InspectConfig, *, page: bool = False) -> None:
    """Raise ``ConfigError`` unless there will be figures, or on a ``page`` text, and a folder to write them into."""
    if config.dataset is None and not config.weights and not (page and config.text is not None):
        raise ConfigError(f"{path} would be empty: there is nothing to draw", "add --dataset FILE or --weights")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written", "name a file in a folder that exists")
