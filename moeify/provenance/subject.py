"""What a model card is about, gathered from a checkpoint's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moeify.checkpoint.reader import Checkpoint, has_tokenizer
from moeify.errors import MoeifyError
from moeify.families.conversion import Conversion
from moeify.families.keys import layout_key
from moeify.families.mixture import sort_mixture
from moeify.families.registry import moe_layout, origin_or_none
from moeify.families.values import Config
from moeify.provenance.record import Record


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a class does: the Hub's name of the task, and the auto class that loads it."""

    task: str
    auto: str


_BASE = Head(task="feature-extraction", auto="AutoModel")
_CAUSAL = Head(task="text-generation", auto="AutoModelForCausalLM")
_HEADS = {
    "ForMaskedLM": Head(task="fill-mask", auto="AutoModelForMaskedLM"),
    "ForPreTraining": Head(task="fill-mask", auto="AutoModelForPreTraining"),
    "ForCausalLM": _CAUSAL,
    "LMHeadModel": _CAUSAL,
    # No auto class has both heads: this one has the one for language.
    "DoubleHeadsModel": _CAUSAL,
    "ForSequenceClassification": Head(task="text-classification", auto="AutoModelForSequenceClassification"),
    "ForTokenClassification": Head(task="token-classification", auto="AutoModelForTokenClassification"),
    "ForQuestionAnswering": Head(task="question-answering", auto="AutoModelForQuestionAnswering"),
    "ForMultipleChoice": Head(task="multiple-choice", auto="AutoModelForMultipleChoice"),
    "ForNextSentencePrediction": Head(task="feature-extraction", auto="AutoModelForNextSentencePrediction"),
    "ForConditionalGeneration": Head(task="image-text-to-text", auto="AutoModelForImageTextToText"),
}


@dataclass(frozen=True, kw_only=True)
class MixtureSize:
    """A mixture's size. ``active`` counts what one token uses of ``total`` parameters.

    ``route_by`` is what its routers decide for: token or sequence; in each of ``slices`` they do so by themselves,
    unless these are ``tied`` and a token visits whole copies, and ``shared`` slices have none. ``nulls`` are null
    experts.
    """

    num_experts: int
    top_k: int
    moe_layers: int
    num_layers: int
    total: int
    active: int
    route_by: str
    slices: int
    tied: bool
    shared: int
    nulls: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> MixtureSize:
        """Counted in the headers of ``checkpoint``; raises ``MoeifyError``."""
        mixture = sort_mixture(checkpoint, moe_layout(checkpoint.config, checkpoint.tensors))
        return cls(
            num_experts=mixture.num_experts,
            top_k=mixture.top_k,
            moe_layers=len(mixture.moe_layers),
            num_layers=mixture.num_layers,
            total=mixture.parameters,
            active=mixture.active_parameters(mixture.top_k),
            route_by=mixture.layout.rule.route_by(mixture.config),
            slices=mixture.slices,
            tied=mixture.numbering.tied > 1,
            shared=mixture.shared_slices,
            nulls=mixture.layout.rule.null_experts(mixture.config),
        )


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint and its history.

    ``mixture`` is None for a dense one, ``conversion`` for all but mixtures that dense checkpoints
    become. ``has_tokenizer`` and ``encoder`` tell whether a tokenizer lies in the folder, and the
    modules of a sentence encoder.
    """

    config: Config
    record: Record
    mixture: MixtureSize | None
    conversion: Conversion | None
    has_tokenizer: bool
    encoder: bool

    @classmethod
    def of(cls, folder: Path, config: Config, record: Record, opened: Checkpoint | None = None) -> Subject:
        """The checkpoint in ``folder``, whose weights and config.json are written already.

        ``opened`` is the same, where it was read before.
        """
        return cls(
            config=config,
            record=record,
            mixture=_mixture(folder, opened),
            conversion=origin_or_none(config, record.dense_type),
            has_tokenizer=has_tokenizer(folder),
            encoder=(folder / "modules.json").is_file(),
        )

    @property
    def model_type(self) -> str:
        """The dense type of what moeify upcycled, any other model's own type."""
        found = self.conversion
        return found.dense.model_type if found else str(layout_key(self.config))

    @property
    def head(self) -> Head:
        """What the class that config.json names does."""
        named = self.config.get("architectures")
        name = str(named[0]) if isinstance(named, list) and named else ""
        return next((head for end, head in _HEADS.items() if name.endswith(end)), _BASE)

    @property
    def remote_code(self) -> bool:
        """Whether the classes travel with the checkpoint."""
        return self.conversion is not None and self.conversion.remote_code

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that made it, each once, in the order of their first use."""
        return tuple(dict.fromkeys(step.command for step in self.record.steps))

    @property
    def upcycled(self) -> bool:
        """Whether moeify made the mixture, and not somebody else."""
        return "upcycle" in self.commands


def _mixture(folder: Path, opened: Checkpoint | None) -> MixtureSize | None:
    """None for a dense checkpoint, and for one of a kind that moeify cannot sort."""
    try:
        return MixtureSize.of(opened or Checkpoint.open(folder))
    except MoeifyError:
        return None
