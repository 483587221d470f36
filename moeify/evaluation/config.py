"""Options of evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moeify.errors import ConfigError
from moeify.routing.config import check_seed
from moeify.tables import check_choices


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """On which tasks checkpoints are compared, and how.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoints.
    """

    tasks: tuple[str, ...]
    """Tasks of lm-evaluation-harness by name, or YAML files of your own."""
    include: Path | None = None
    """Folder with tasks of your own, which ``tasks`` may name."""
    num_fewshot: int | None = None
    """Examples before each question; left out, as many as the task says."""
    limit: int | None = None
    """Questions of each task at most, for a first look; left out, all."""
    batch: int = 8
    """Questions in a batch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype to compute in; auto takes each checkpoint's own."""
    device: str | None = None
    """Device to compute on, as cpu or cuda; left out, an accelerator if there is one."""
    seed: int = 0
    """Seed of the examples that are drawn."""
    output: Path | None = None
    """File for the JSON document."""
    card: bool = False
    """Write the figures into the model card of each folder too."""
    force: bool = False
    """Replace a file that exists."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        check_choices(self)
        check_seed(self.seed)
        if self.include is not None and not self.include.is_dir():
            raise ConfigError(f"--include {self.include} is no folder", "name a folder that holds tasks")
        if not self.tasks:
            raise ConfigError("no task is named", "pass --tasks hellaswag,arc_easy")
        for option in ("limit", "batch"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ConfigError(f"{option} must be at least 1, not {value}", f"leave --{option} out")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"num-fewshot must be 0 or more, not {self.num_fewshot}", "leave --num-fewshot out")
