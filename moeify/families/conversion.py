"""The shape of the data that says how a dense type becomes a mixture, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from moeify.errors import CheckpointError, ConfigError
from moeify.families.base import DenseLayout
from moeify.families.engines import NATIVE, Engine, Said, own_engines, ties
from moeify.families.moe_layout import ExtraTensor, MoeLayout
from moeify.families.values import Config

DENSE_TYPE = "dense_model_type"
"""Under which moeify.json, and config.json where a user adds it, say what a mixture came from."""


@dataclass(frozen=True, kw_only=True)
class MoeSettings:
    """What upcycling decides and a conversion writes into the MoE config.

    ``renormalise`` has the weights of the chosen experts sum to 1. Without it they sum to K/E as
    long as the router is near zero, and the experts are scaled by E/K to make up for it.
    ``untied`` gives the output a matrix of its own where the dense model shares the embeddings'.
    ``route_by`` says what a router decides for, token or sequence. ``width`` is that of an expert,
    None for the dense FFN's.
    """

    num_experts: int
    top_k: int
    moe_layers: tuple[int, ...]
    num_layers: int
    renormalise: bool = True
    untied: bool = False
    route_by: str = "token"
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
    ``extras`` are tensors that the MoE class demands and the dense model lacks. ``every_layer``
    says why no layer may stay dense; None where layers may. ``head_prefixes`` lead the base
    model's names in those heads of the MoE class that differ from the dense one's. ``remote_code``
    says that the MoE classes are moeify's own and travel inside the checkpoint. ``notes`` are for
    the model card and for inspect.
    """

    dense: DenseLayout
    moe: MoeLayout
    to_moe: Callable[[Config, MoeSettings], Config]
    to_dense: Callable[[Config], Config]
    came_from: Callable[[Config], bool] = lambda config: True
    heads: tuple[str, ...] | None = None
    extras: tuple[ExtraTensor, ...] = ()
    every_layer: str | None = None
    head_prefixes: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[Engine, ...] = NATIVE
    remote_code: bool = False
    notes: Said = ()

    @property
    def parameters(self) -> tuple[ExtraTensor, ...]:
        """Those of ``extras`` that the class counts: a bias for choosing may be a buffer."""
        rule = self.moe.rule
        buffer = None if rule.selection_bias_trained else rule.selection_bias
        return tuple(extra for extra in self.extras if extra.name != buffer)

    def moe_config(self, config: Config, settings: MoeSettings) -> Config:
        """config.json of the mixture that a dense ``config`` becomes; raises ``MoeifyError``."""
        if self.every_layer is not None and settings.dense_layers:
            raise ConfigError(self.every_layer, "pass --layers all, or leave it out")
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
        return {**result, "model_type": self.moe.model_type, "architectures": [name]}

    def form(self, config: Config, settings: MoeSettings, engines: Collection[str]) -> MoeSettings:
        """The first form of the mixture that each of ``engines`` computes as transformers does.

        Raises ``ConfigError`` where there is none, with what one of them says to the last.
        """
        known = {engine.name: engine for engine in self.engines}
        asked = [known.get(name, Engine(name=name, verdict="no: nothing is known of it there")) for name in engines]
        said: tuple[str, str] | None = None
        for form in self._forms(config, settings):
            result = self.moe_config(config, form)
            against = ((engine.name, engine.reason_against(result)) for engine in asked)
            said = next(((name, reason) for name, reason in against if reason is not None), None)
            if said is None:
                return form
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
        named = config.get("architectures") or [f"{self.moe.class_prefix}Model"]
        name = str(named[0])
        head = name.removeprefix(self.moe.class_prefix)
        if name == head or head not in self.dense.heads:
            raise CheckpointError(
                f"the class {name!r} has no dense {self.dense.model_type} class beside it",
                "mend architectures in config.json",
            )
        architectures = [self.dense.class_prefix + head]
        return {**result, "model_type": self.dense.model_type, "architectures": architectures}

    def moe_prefix(self, config: Config) -> str:
        """What leads the base model's names in the mixture that a dense ``config`` becomes."""
        name = self.dense.head_name(config)
        return self.head_prefixes.get(name, self.dense.heads[name].prefix)

    def notes_on(self, config: Config) -> tuple[str, ...]:
        """What a user of the mixture that ``config`` describes should know."""
        return tuple(text for test, text in self.notes if test(config))


def own_conversion(dense: DenseLayout, moe: MoeLayout) -> Conversion:
    """To moeify's own class: the dense config plus the mixture's keys."""
    return Conversion(
        dense=dense,
        moe=moe,
        to_moe=_own_moe_config,
        to_dense=lambda config: {k: v for k, v in config.items() if k not in _OWN_KEYS},
        engines=own_engines(moe.model_type),
        remote_code=True,
    )


def _own_moe_config(config: Config, settings: MoeSettings) -> Config:
    return {
        **config,
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "moe_layers": list(settings.moe_layers),
        "route_by": settings.route_by,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }


_OWN_KEYS = (
    "num_experts",
    "num_experts_per_tok",
    "moe_layers",
    "route_by",
    "norm_topk_prob",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "experts_implementation",
)
