"""Options of inspect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moeify.errors import ConfigError

__all__ = ["InspectConfig"]

IMAGE_ENDINGS = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """How deep to look, on what text, and which pictures to draw.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    weights: bool = False
    """Read routers and experts: norms, similarities, duplicates, NaN."""
    dense: str | None = None
    """Dense checkpoint, a folder or a Hub id, to measure the experts' distance from."""
    dataset: str | None = None
    """Text to route: a file or a dataset on the Hub."""
    split: str = "train"
    """Split of a dataset on the Hub."""
    text_column: str = "text"
    """Column that holds the text."""
    domain_column: str | None = None
    """Column that names each text's domain."""
    samples: int = 256
    """Sequences to route at most."""
    length: int = 512
    """Tokens of a sequence at most."""
    batch: int = 4
    """Sequences routed at once."""
    vocabulary: bool = False
    """Also count which tokens each expert sees most."""
    against: str | None = None
    """Second checkpoint whose routing of the same text is compared."""
    revision: str | None = None
    """Branch, tag or commit, where the checkpoint is a Hub id."""

    def __post_init__(self) -> None:
        for option in ("samples", "length", "batch"):
            if not 1 <= getattr(self, option) <= 1 << 24:
                raise ConfigError(
                    f"{option} must be a positive number, not {getattr(self, option)}",
                    f"leave --{option} out",
                )
        if self.dense is not None and not self.weights:
            raise ConfigError(
                "--dense measures the weights' distance from a dense checkpoint", "add --weights"
            )
        for option in ("domain_column", "against"):
            if getattr(self, option) is not None and self.dataset is None:
                name = option.replace("_", "-")
                raise ConfigError(f"--{name} needs text to route", "add --dataset FILE")
        if self.vocabulary and self.dataset is None:
            raise ConfigError("--vocabulary needs text to route", "add --dataset FILE")


def check_image(path: Path) -> None:
    """Raise ``ConfigError`` unless ``path`` ends like a picture that can be drawn."""
    if path.suffix.lower() not in IMAGE_ENDINGS:
        raise ConfigError(
            f"--plot {path.name} has no ending that says which picture to draw",
            f"one of: {', '.join(IMAGE_ENDINGS)}",
        )
