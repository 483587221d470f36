"""Ways to set an untrained router, what a router decides for, and the text that is routed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from moeify.errors import ConfigError

RouterInit = Literal["calibrated", "normal", "zeros"]
ROUTER_INITS: tuple[RouterInit, ...] = get_args(RouterInit)
RouterStart = Literal["calibrated", "normal", "zeros", "prompts", "data"]
"""The same, and those that are computed from text."""
RouteBy = Literal["token", "sequence"]
Trained = Literal["routers", "moe", "all"]
"""What a training changes: routers, routers and experts, or everything."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How much of a model is in memory at a time, wherever text runs through it."""

    low_memory: bool | None = None
    """Hold one layer's weights at a time; left out, where all of them do not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text is read and how it is cut into blocks of tokens.

    Raises ``ConfigError`` for values that cannot work, whatever the data.
    """

    dataset: str
    """Text to read: files, a folder or a glob, or a Hub id, with :NAME for one of its configurations."""
    split: str = "train"
    """Split of the dataset; files are one split, train, and folders tell splits by names."""
    text_column: str | None = None
    """Column that holds text or conversations; left out, text, messages, conversations, or prompt and completion."""
    domain_column: str | None = None
    """Column that names each text's domain; a block then never mixes domains."""
    streaming: bool = False
    """Read a dataset while it downloads instead of downloading all of it first."""
    max_samples: int | None = None
    """Texts to read at most; left out, all that are needed."""
    seq_len: int | None = None
    """Tokens of a block; left out, 512 or the model's limit where that is less."""
    assistant_only: bool = False
    """Take the loss on what assistants say in conversations, and on nothing else."""
    seed: int = 0
    """Seed of the order in which texts are read, and of whatever else is drawn."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigError("no dataset is named", "pass --dataset FILE or a Hub id")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}", "leave --seed out")
        for option in ("max_samples", "seq_len"):
            value = getattr(self, option)
            if value is not None and value < 1:
                name = option.replace("_", "-")
                raise ConfigError(f"{name} must be positive, not {value}", f"leave --{name} out")

    @classmethod
    def of(cls, options: Any, **others: Any) -> DataConfig:
        """The text that a command's ``options`` name in fields of the same names, with ``others`` in their place."""
        given = {field.name: getattr(options, field.name) for field in fields(cls) if hasattr(options, field.name)}
        return cls(**given | others)


def check_seed(seed: int) -> None:
    """Raise ``ConfigError`` for a seed that the generator cannot take."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"the seed must lie between 0 and 2^63 - 1, not {seed}", "pass --seed 0")
