"""Options of warmup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from moeify.errors import ConfigError
from moeify.provenance.config import OutputOptions
from moeify.routing.config import DataConfig, MemoryOptions, Trained
from moeify.tables import check_choices
from moeify.warming.balances import BALANCES
from moeify.warming.fits import FITS

Loss = Literal["auto", "causal", "masked", "distill"]


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(DataConfig, OutputOptions, MemoryOptions):
    """How the routers of a mixture are fitted and trained, and on which text.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    fit: Annotated[str, FITS] = "auto"
    """How routers are set before training; auto leaves routers alone that were trained before."""
    steps: int = 200
    """Training steps; 0 stops after the fit."""
    train: Trained = "routers"
    """What is trained: the routers, routers and experts (moe), or all weights."""
    loss: Loss = "auto"
    """What is trained on besides balance; auto takes what suits the model's head."""
    balance: Annotated[str, BALANCES] = "switch"
    """What keeps the load even, for each layer by itself."""
    balance_coef: float = 0.01
    """Weight of the balance loss."""
    bias_rate: float = 1e-3
    """How far a step moves the bias of each expert, with --balance bias."""
    null_rate: float | None = None
    """Share of null experts among the choices of a token behind its first; left out, as the task has it."""
    null_coef: float = 1.0
    """Weight of the loss that leads to ``null_rate``."""
    z_coef: float = 0.001
    """Weight of the z-loss, which keeps router logits small."""
    learning_rate: float = 1e-3
    """Largest learning rate, reached after the first tenth of the steps."""
    batch: int = 8
    """Blocks in a batch, on each device."""
    accumulate: int = 1
    """Batches of a training step."""
    fit_tokens: int = 24_576
    """Tokens that routers are fitted to, at most; their inputs are held in memory."""
    eval_tokens: int = 16_384
    """Held-out tokens that losses and loads are measured on, at most."""
    held_out: float = 0.1
    """Fraction of the text that is held out."""
    entropy: float = 0.92
    """Normalised entropy that fitted routers start with: 1 undecided, 0 certain.

    Those of experts that have labels are as certain as the text allows.
    """
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype to compute in; auto takes the checkpoint's own. Trained weights are float32."""
    device: str | None = None
    """Device to compute on, as cpu or cuda; left out, an accelerator if there is one. Single layers run on cpu."""
    reference: str | None = None
    """Checkpoint to compare with, dense or the mixture before pruning, and to learn from with ``loss`` distill."""
    save_steps: int = 50
    """Steps between checkpoints of the run, which hold what is trained and nothing else."""
    resume: bool = False
    """Continue a run that was interrupted."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where losses are logged step by step, besides the terminal; TensorBoard's files go to ./runs."""
    plot: Path | None = None
    """File (.svg or .png) for the loads before and after and the loss curve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        for option in ("batch", "accumulate", "fit_tokens", "eval_tokens", "save_steps"):
            self._check(option, getattr(self, option) >= 1, "at least 1")
        self._check("steps", self.steps >= 0, "0 or more")
        if self.low_memory and self.steps:
            raise ConfigError(
                f"{self.steps} training steps need all weights in memory",
                "pass --steps 0 to fit routers layer by layer, or leave --low-memory out",
            )
        if self.low_memory and self.device is not None and self.device.split(":")[0] != "cpu":
            raise ConfigError(
                f"layers that are loaded one by one run on the CPU, not on {self.device!r}",
                "leave --device or --low-memory out",
            )
        self._check("held_out", 0 < self.held_out < 1, "between 0 and 1")
        self._check("entropy", 0 < self.entropy < 1, "between 0 and 1")
        self._check("bias_rate", 0 < self.bias_rate < math.inf, "above 0")
        self._check("null_rate", self.null_rate is None or 0 <= self.null_rate <= 1, "between 0 and 1")
        for option in ("balance_coef", "null_coef", "z_coef", "learning_rate"):
            value = getattr(self, option)
            self._check(option, math.isfinite(value) and value >= 0, "0 or more")
        self._check("seed", 0 <= self.seed < 1 << 32, "between 0 and 2^32 - 1")
        if self.fit == "domains" and self.domain_column is None:
            raise ConfigError("fitting to domains needs to know them", "pass --domain-column with their column")
        if self.plot is not None and self.plot.suffix not in (".svg", ".png"):
            raise ConfigError(f"a plot is an .svg or .png file, not {self.plot.name!r}", "pass --plot load.svg")

    def _check(self, option: str, holds: bool, limit: str) -> None:
        if not holds:
            name = option.replace("_", "-")
            raise ConfigError(f"{name} must be {limit}, not {getattr(self, option):g}", f"leave --{name} out")
