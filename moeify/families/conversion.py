"""The shape of the data that says how a dense type becomes a mixture, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from moeify.errors import CheckpointError, ConfigError, MoeifyError
from moeify.families.base import DenseLayout
from moeify.families.engines import NATIVE, VLLM, Engine, Said, ties
from moeify.families.keys import with_key
from moeify.families.moe_layout import ExtraTensor, MoeLayout
from moeify.families.moe_names import as_loaded
from moeify.families.problems import numbers
from moeify.families.rope import spelled_rope
from moeify.families.values import Config, positive, with_text

DENSE_TYPE = "dense_model_type"
"""Under which moeify.json, and config.json where a user adds it, say what a mixture came from."""


@dataclass(frozen=True, kw_only=True)
class MoeSettings:
    """What upcycling decides and a conversion writes into the MoE config.

    ``renormalise`` has the weights of the chosen experts sum to 1. Without it they sum to K/E as
    long as the router is near zero, and the experts are scaled by E/K to make up for it.
    ``untied`` gives the output a matrix of its own where the dense model shares the embeddings'.
    ``route_by`` says what a router decides for, token or sequence, ``router_bias`` whether it has a bias for choosing.
    ``slices`` divide the experts and what a token visits; ``shared`` are slices beside them that every token visits,
    ``nulls`` null experts of ``null_kinds``. ``width`` is that of an expert, None for the dense FFN's.
    """

    num_experts: int
    top_k: int
    moe_layers: tuple[int, ...]
    num_layers: int
    renormalise: bool = True
    untied: bool = False
    route_by: str = "token"
    router_bias: bool = False
    slices: int = 1
    shared: int = 0
    nulls: int = 0
    null_kinds: tuple[str, ...] = ()
    width: int | None = None

    @property
    def dense_layers(self) -> list[int]:
        """Layers that keep their dense FFN."""
        return [layer for layer in range(self.num_layers) if layer not in self.moe_layers]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """From one dense type to one mixture: the config there and back, and what goes beside.

    ``to_moe`` and ``to_dense`` give a config without its model type and class, and raise
    ``MoeifyError`` for one that the other side cannot express. ``came_from`` tells by a mixture's
    config whether it can stem from this dense type, where several become the same mixture.
    ``heads`` are those of the dense heads that the MoE class has, None where it has all.
    ``extras`` are tensors that the MoE class demands and the dense model lacks.
    ``head_prefixes`` lead the base model's names in those heads of the MoE class that differ from
    the dense one's. ``remote_code`` says that the MoE classes are moeify's own and travel inside the checkpoint.
    ``fused`` says that all experts of a layer are written in two tensors, as transformers 5 holds
    them, although the class reads them one by one too. ``notes`` are for the model card and for inspect.
    """

    dense: DenseLayout
    moe: MoeLayout
    to_moe: Callable[[Config, MoeSettings], Config]
    to_dense: Callable[[Config], Config]
    came_from: Callable[[Config], bool] = lambda config: True
    heads: tuple[str, ...] | None = None
    extras: tuple[ExtraTensor, ...] = ()
    head_prefixes: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[Engine, ...] = NATIVE
    remote_code: bool = False
    fused: bool = False
    notes: Said = ()

    def extras_of(self, config: Config) -> tuple[ExtraTensor, ...]:
        """Those of ``extras`` that the mixture which ``config`` describes has."""
        return tuple(extra for extra in self.extras if extra.only_if is None or extra.only_if(config))

    def parameters(self, config: Config) -> tuple[ExtraTensor, ...]:
        """Those of them that the class counts: a bias for choosing may be a buffer."""
        rule = self.moe.of(config).rule
        buffer = None if rule.selection_bias_trained else rule.selection_bias
        return tuple(extra for extra in self.extras_of(config) if extra.name != buffer)

    @property
    def written(self) -> MoeLayout:
        """The mixture under the names that its tensors are written with."""
        return as_loaded(self.moe) if self.fused else self.moe

    def written_for(self, config: Config) -> MoeLayout:
        """The same for the mixture that ``config`` describes.

        Where shapes would not tell that experts are turned, they are written as the class holds them.
        """
        held = self.moe.turned_when_loaded and self.moe.is_square(config)
        return (as_loaded(self.moe) if held else self.written).of(config)

    @property
    def base_class(self) -> str:
        """The mixture's class without a head."""
        return self.moe.class_prefix + next(iter(self.heads or self.dense.heads))

    def refusal(self, config: Config) -> str | None:
        """Why the mixture cannot express what a dense ``config`` says; None where it can."""
        layers = self.dense.num_layers(config)
        every = MoeSettings(num_experts=1, top_k=1, moe_layers=tuple(range(layers)), num_layers=layers)
        try:
            self.moe_config(config, every)
        except MoeifyError as error:
            return error.message
        return None

    def moe_config(self, config: Config, settings: MoeSettings) -> Config:
        """config.json of the mixture that a dense ``config`` becomes; raises ``MoeifyError``."""
        head = self.dense.head_name(config)
        name = self.moe.class_prefix + head
        if self.heads is not None and head not in self.heads:
            known = ", ".join(self.dense.class_prefix + other for other in self.heads)
            raise CheckpointError(
                f"{self.dense.class_prefix}{head} would become a {name}, which does not exist",
                f"set architectures in config.json to one of: {known}",
            )
        result = self.to_moe(dict(config), settings)
        if settings.untied:
            result["tie_word_embeddings"] = False
        if self.moe.moe_layers(result) != settings.moe_layers:
            raise ConfigError(
                f"{self.moe.model_type} has no way to say that {numbers(settings.dense_layers, 'layer')} stay dense",
                "pass --layers all, or leave it out",
            )
        return {**with_key(result, self.moe.model_type), "architectures": [name]}

    def form(self, config: Config, settings: MoeSettings, engines: Collection[str]) -> MoeSettings:
        """The first form of the mixture that each of ``engines`` computes as transformers does.

        Without engines it is the first that vLLM does, and the usual one where vLLM runs none. Raises
        ``ConfigError`` where engines run none, with what one of them says to the last.
        """
        known = {engine.name: engine for engine in self.engines}
        asked = [
            known.get(name, Engine(name=name, verdict="no: nothing is known of it there"))
            for name in engines or (VLLM.name,)
        ]
        said: tuple[str, str] | None = None
        for form in self._forms(config, settings):
            result = self.moe_config(config, form)
            against = ((engine.name, engine.reason_against(result)) for engine in asked)
            said = next(((name, reason) for name, reason in against if reason is not None), None)
            if said is None:
                return form
        if not engines:
            return settings
        name, reason = said or ("", "")
        raise ConfigError(
            f"{name} runs no form of this {self.moe.model_type}: {reason}",
            f"leave {name} out of --for, and run the mixture in transformers",
        )

    def _forms(self, config: Config, settings: MoeSettings) -> Iterator[MoeSettings]:
        """The usual one first; flat routers beside scaled experts where no sum is taken."""
        flat = (True, False) if self.moe.rule.norm_key is not None else (True,)
        for renormalise in flat:
            for untied in (False, True) if ties(self.moe_config(config, settings)) else (False,):
                yield replace(settings, renormalise=renormalise, untied=untied)

    def dense_config(self, config: Config) -> Config:
        """config.json of the dense model that a mixture becomes; raises ``CheckpointError``."""
        result = self.to_dense({k: v for k, v in config.items() if k != DENSE_TYPE})
        named = config.get("architectures") or [self.base_class]
        name = str(named[0])
        head = name.removeprefix(self.moe.class_prefix)
        if name == head or head not in self.dense.heads:
            raise CheckpointError(
                f"the class {name!r} has no dense {self.dense.model_type} class beside it",
                "mend architectures in config.json",
            )
        architectures = [self.dense.class_prefix + head]
        return {**with_key(result, self.dense.model_type), "architectures": architectures}

    def moe_prefix(self, config: Config) -> str:
        """What leads the base model's names in the mixture that a dense ``config`` becomes."""
        name = self.dense.head_name(config)
        return self.head_prefixes.get(name, self.dense.heads[name].prefix)

    def notes_on(self, config: Config) -> tuple[str, ...]:
        """What a user of the mixture that ``config`` describes should know."""
        return tuple(text for test, text in self.notes if test(config))


def dense_again(*keys: str, defaults: Config) -> Callable[[Config], Config]:
    """A ``to_dense`` that drops ``keys`` and writes out what the MoE config class assumes."""
    dropped = {*keys, *_OF_MIXTURES}
    return lambda config: spelled_rope(
        {**defaults, **{key: value for key, value in config.items() if key not in dropped}}
    )


def towered(config: Config, model_type: str, change: Callable[[Config], Config]) -> Config:
    """``config`` of a model of several parts, with the text part changed and all parts' types."""
    parts = {key: config[key] for key in ("text_config", "vision_config") if isinstance(config.get(key), dict)}
    named = {key: {**part, "model_type": f"{model_type}_{key.removesuffix('_config')}"} for key, part in parts.items()}
    return with_text({**config, **named}, change)


def refuse_set(config: Config, key: str, what: str) -> None:
    """Raise ``CheckpointError`` where ``key`` is set, of which the mixture has nothing."""
    if config.get(key):
        raise CheckpointError(f"config.json has {key} set: {what}", "upcycle a checkpoint without")


def refuse_shared(config: Config, key: str) -> None:
    """Raise ``CheckpointError`` where ``key`` counts shared experts: no dense class has any."""
    if config.get(key):
        raise CheckpointError(
            f"this mixture has shared experts ({key} is {config[key]!r}), which no dense class can express", _ONLY_OURS
        )


def one_width(
    moe: MoeLayout, config: Config, expert: str = "moe_intermediate_size", dense: str = "intermediate_size"
) -> int:
    """Width of the experts; raises ``CheckpointError`` where dense layers have another."""
    width = positive(config, expert)
    dense_layers = len(moe.moe_layers(config)) < positive(config, "num_hidden_layers")
    if dense_layers and config.get(dense) != width:
        raise CheckpointError(
            f"the experts are {width} wide and the dense layers {config.get(dense)}: no dense class has two widths",
            "only mixtures whose experts are as wide as the dense layers become dense",
        )
    return width


_ONLY_OURS = "only a mixture that was upcycled from a dense model becomes one again"
_OF_MIXTURES = ("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef", "experts_implementation")
