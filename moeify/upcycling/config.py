"""Options of upcycle, attach and verify."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from moeify.errors import ConfigError
from moeify.families.engines import NAMES as ENGINES
from moeify.provenance.config import OutputOptions, ShardedOutput
from moeify.routing.config import MemoryOptions, RouteBy, RouterInit, RouterStart, check_seed
from moeify.tables import check_choices
from moeify.upcycling.class_checks import check_nulls, check_top_k
from moeify.upcycling.recipes import RECIPES, recipe_for

SliceBy = Literal["order", "activation"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DEFAULT_EXPERTS = 8
MAX_EXPERTS = 4096
MAX_NOISE = 1.0


@dataclass(frozen=True, kw_only=True)
class RouterTextConfig(ShardedOutput):
    """How routers start, and the text that they are computed from.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    router: RouterStart = "calibrated"
    """How the routers start; prompts and data compute them from text."""
    seed: int = 0
    """Seed of noise, routers and the order of texts."""
    prompts: Path | None = None
    """YAML or JSON file from labels to examples, for ``router`` prompts."""
    dataset: str | None = None
    """Text for ``router`` data: files, a folder or a glob, or a Hub id, with :NAME for one of its configurations."""
    split: str = "train"
    """Split of the dataset; files are one split, train, and folders tell splits by names."""
    text_column: str | None = None
    """Column that holds text or conversations; left out, text, messages, conversations, or prompt and completion."""
    domain_column: str | None = None
    """Column that holds each text's label."""
    fit_tokens: int = 24_576
    """Tokens that routers are fitted to, at most; their inputs are held in memory."""
    seq_len: int | None = None
    """Tokens of a block; left out, 512 or the model's limit where that is less."""
    entropy: float | None = None
    """Normalised entropy of routers from text: 1 undecided, 0 certain; left out, as sure as
    the text allows."""
    low_memory: bool = True
    """Hold one layer's weights at a time while routers are computed from text."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_seed(self.seed)
        _check_text(self)

    @property
    def needs_text(self) -> bool:
        """Whether routers are computed from text."""
        return self.router in ("prompts", "data")

    @property
    def reads_dataset(self) -> bool:
        """Whether the dataset is read for something else than routers."""
        return False


@dataclass(frozen=True, kw_only=True)
class UpcycleConfig(RouterTextConfig):
    """How a dense checkpoint becomes a mixture of experts.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    num_experts: int | None = None
    """Experts in each MoE layer; left out, as many as ``experts_from`` names, or 8."""
    top_k: int = 2
    """Experts that each token visits."""
    slices: int = 1
    """Parts that each feed-forward network is cut into, each with so many experts, of which a token visits top-k."""
    shared: int = 0
    """Slices, of those, that keep one copy which every token visits, without experts and router."""
    slice_by: SliceBy = "order"
    """How neurons are dealt to slices: as they stand, or together where text of ``dataset`` excites them together."""
    layers: str = "all"
    """Layers to convert: all, odd, even, last-half, or numbers and ranges such as 0,2,4-7."""
    noise: float = 0.01
    """Standard deviation of the noise on each expert's weights, relative to the weights' own."""
    route_by: RouteBy = "token"
    """What a router decides for: each token, or a whole sequence by the mean of its tokens."""
    router_bias: bool = False
    """Give routers a bias that chooses experts and does not weigh them, zero at first, for --balance bias."""
    null_experts: int = 0
    """Null experts of each layer, which a token may choose in place of all its experts but the first."""
    null_kinds: tuple[str, ...] = ("zero",)
    """What null experts give, dealt out in turn: zero, copy (alpha x) or constant (a vector); all begin as zero."""
    experts_from: tuple[str, ...] = ()
    """Checkpoints or LoRA adapters that the experts are made of, dealt out in turn."""
    labels: tuple[str, ...] = ()
    """What each entry of ``experts_from`` knows; left out, the entries' own names."""
    recipe: Annotated[str, RECIPES] | None = None
    """How experts are made; left out, it follows from ``experts_from``, ``slices`` and ``reinit``, else copies."""
    reinit: float = 0.0
    """Share of each expert's neurons that is drawn anew, which is not exact; the others take no noise.

    With ``dataset`` the loss before training is measured on it.
    """
    rest: Literal["base", "mean"] = "base"
    """Where attention, norms and embeddings come from: the base, or the mean of all entries."""
    shares: tuple[float, ...] = ()
    """Share of each entry in the mean that ``rest`` takes; left out, all weigh the same."""
    arch: str | None = None
    """Model type of the mixture, or own for moeify's own class; left out, the first that can express it."""
    dtype: Dtype = "auto"
    """Dtype of the output; auto keeps each tensor's own."""
    engines: tuple[str, ...] = ()
    """Programs that the output must be right in too: llama.cpp, mlx-lm, vLLM, SGLang."""

    @property
    def deals_by_text(self) -> bool:
        """Whether neurons are dealt to slices by text."""
        return self.slice_by == "activation"

    @property
    def measures_start(self) -> bool:
        """Whether the loss before training is measured, for a mixture that does not compute what its base computes."""
        return self.reinit > 0 and self.dataset is not None

    @property
    def reads_dataset(self) -> bool:
        """Whether the dataset is read for something else than routers."""
        return self.deals_by_text or self.measures_start

    @property
    def routed_slices(self) -> int:
        """Slices that have experts and a router."""
        return self.slices - self.shared

    @property
    def experts(self) -> int:
        """Experts in each slice of an MoE layer."""
        if self.num_experts is not None:
            return self.num_experts
        return len(self.experts_from) or DEFAULT_EXPERTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts_from", _listed(self.experts_from))
        object.__setattr__(self, "labels", _listed(self.labels))
        object.__setattr__(self, "shares", tuple(self.shares))
        object.__setattr__(self, "null_kinds", _listed(self.null_kinds))
        if not 2 <= self.experts <= MAX_EXPERTS:
            raise ConfigError(f"a mixture needs 2 to {MAX_EXPERTS} experts, not {self.experts}", "pass --experts 8")
        if not 0 <= self.reinit <= 1:
            raise ConfigError(f"reinit must lie between 0 and 1, not {self.reinit:g}", "try --reinit 0.5")
        most = MAX_EXPERTS // self.experts
        if not 1 <= self.slices <= most:
            raise ConfigError(
                f"slices of {self.experts} experts must be 1 to {most}, {MAX_EXPERTS} experts in all, not"
                f" {self.slices}",
                "pass --slices 4, or leave it out",
            )
        if not 0 <= self.shared < self.slices:
            raise ConfigError(
                f"of {self.slices} slices tokens can share 0 to {self.slices - 1}, not {self.shared}",
                "pass --slices 4 --shared 1, or leave --shared out",
            )
        if self.shared and self.experts_from:
            raise ConfigError(
                "--shared does not go with --experts-from: what tokens share has one copy, of one checkpoint",
                "leave --shared out",
            )
        if self.deals_by_text and (self.slices == 1 or self.dataset is None):
            raise ConfigError(
                "--slice-by activation deals neurons to slices by text", "pass --slices 4 and --dataset FILE with it"
            )
        check_top_k(self.top_k, self.experts)
        check_nulls(self.null_experts, self.null_kinds, self.top_k, self.slices)
        if not (math.isfinite(self.noise) and 0 <= self.noise <= MAX_NOISE):
            raise ConfigError(
                f"noise must lie between 0 and {MAX_NOISE:g}, not {self.noise:g}",
                "it is relative to the weights' standard deviation: try --noise 0.01",
            )
        check_choices(self)
        _check_entries(self)
        super().__post_init__()
        if self.needs_text and not self.experts_from:
            raise ConfigError(
                f"--router {self.router} needs to know what each expert knows", "pass --experts-from and --labels"
            )
        _check_engines(self)
        recipe_for(self)


def _check_engines(config: UpcycleConfig) -> None:
    """Take the names in any case."""
    known = {name.lower(): name for name in ENGINES}
    wanted = _listed(config.engines)
    for name in wanted:
        if name.lower() not in known:
            raise ConfigError(f"{name!r} is no engine that moeify knows", f"--for takes {', '.join(ENGINES)}")
    object.__setattr__(config, "engines", tuple(known[name.lower()] for name in wanted))


def _listed(given: str | Iterable[object]) -> tuple[str, ...]:
    """Names one by one, or in one string with commas between them."""
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(",") if part.strip())
    return tuple(map(str, given))


def _check_entries(config: UpcycleConfig) -> None:
    """What belongs to ``experts_from`` must fit it."""
    entries = len(config.experts_from)
    for option in ("labels", "shares"):
        given = len(getattr(config, option))
        if given and given != entries:
            raise ConfigError(
                f"{given} {option} for {entries} entries of --experts-from",
                f"pass one for each entry, or leave --{option} out",
            )
    if config.rest == "mean" and not entries:
        raise ConfigError(
            "--rest mean averages the entries of --experts-from, and there are none",
            "pass --experts-from, or leave --rest out",
        )
    if config.shares and config.rest != "mean":
        raise ConfigError("--shares belong to --rest mean", "pass --rest mean as well")
    if config.shares and not (
        all(math.isfinite(share) and share >= 0 for share in config.shares) and sum(config.shares) > 0
    ):
        raise ConfigError(
            f"shares must be 0 or more and not all 0, not {', '.join(map(str, config.shares))}",
            "leave --shares out to weigh all entries the same",
        )
    if entries > config.experts:
        raise ConfigError(
            f"{entries} entries of --experts-from do not fit into {config.experts} experts",
            f"pass --experts {entries}, or leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class AddConfig(RouterTextConfig):
    """Which dense checkpoints join a mixture as experts, and how its routers learn of them.

    Raises ``ConfigError`` for values that cannot work, whatever the checkpoint.
    """

    experts: tuple[str, ...] = ()
    """Dense checkpoints whose feed-forward layers become one more expert each."""
    labels: tuple[str, ...] = ()
    """What each entry of ``experts`` knows; left out, the entries' own names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "experts", _listed(self.experts))
        object.__setattr__(self, "labels", _listed(self.labels))
        if not self.experts:
            raise ConfigError("no expert is named", "pass --expert with a dense checkpoint")
        if self.labels and len(self.labels) != len(self.experts):
            raise ConfigError(
                f"{len(self.labels)} labels for {len(self.experts)} entries of --expert",
                "pass one for each entry, or leave --labels out",
            )


@dataclass(frozen=True, kw_only=True)
class AttachConfig(OutputOptions):
    """How an existing mixture of experts gets fresh routers."""

    router: RouterInit = "calibrated"
    """How the routers start."""
    top_k: int | None = None
    """Experts that each token visits; left out, as many as before."""
    route_by: RouteBy | None = None
    """What a router decides for, token or sequence; left out, the same as before."""
    router_bias: bool = False
    """Give the routers of moeify's own classes a bias that chooses experts and does not weigh them."""
    seed: int = 0
    """Seed of the routers."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_seed(self.seed)


def _check_text(config: RouterTextConfig) -> None:
    """Routers from text need labelled text, and others have no use for it."""
    given = {"prompts": config.prompts is not None, "data": config.dataset is not None}
    option = {"prompts": "--prompts FILE", "data": "--dataset FILE"}
    for router, present in given.items():
        if config.router == router and not present:
            raise ConfigError(f"--router {router} needs text", f"pass {option[router]}")
        if config.router != router and present and not (router == "data" and config.reads_dataset):
            raise ConfigError(
                f"{option[router].split()[0]} has no use with --router {config.router}", f"pass --router {router}"
            )
    if not any(given.values()):
        return
    if config.router == "data" and config.domain_column is None:
        raise ConfigError("--router data needs to know each text's label", "pass --domain-column with its column")
    for name in ("fit_tokens", "seq_len"):
        value = getattr(config, name)
        if value is not None and value < 1:
            shown = name.replace("_", "-")
            raise ConfigError(f"{shown} must be positive, not {value}", f"leave --{shown} out")
    if config.entropy is not None and not 0 < config.entropy < 1:
        raise ConfigError(f"entropy must lie between 0 and 1, not {config.entropy}", "leave --entropy out")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(MemoryOptions):
    """On what a mixture and its dense model are compared."""

    text: Path | None = None
    """Text file to read tokens from; left out, they are drawn evenly from the vocabulary."""
    batch: int = 2
    """Sequences in the batch."""
    seq_len: int = 32
    """Tokens of a sequence."""
    dtype: Dtype = "auto"
    """Dtype to compute in; auto takes the dense checkpoint's own."""
    seed: int = 0
    """Seed of the drawn tokens."""

    def __post_init__(self) -> None:
        for option in ("batch", "seq_len"):
            if not 1 <= getattr(self, option) <= 1 << 20:
                name = option.replace("_", "-")
                raise ConfigError(
                    f"{name} must be a positive number, not {getattr(self, option)}", f"leave --{name} out"
                )
        check_choices(self)
        check_seed(self.seed)
