"""How experts are made: each way to make them is one recipe, found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from moeify.errors import ConfigError
from moeify.families.slicing import slice_share
from moeify.provenance.citations import DOMAINS
from moeify.tables import Citation, Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moeify.checkpoint.jobs import Piece
    from moeify.upcycling.config import UpcycleConfig
    from moeify.upcycling.ingredients import Ingredients
    from moeify.upcycling.sources import ExpertOrigin


@dataclass(frozen=True, kw_only=True)
class Recipe(Row, ABC):
    """How many experts a layer has, how wide one is, and what each of their tensors is made of.

    ``follows`` is the option that it exists for: ``experts_from``, whose entries it takes, ``slices`` or ``reinit``;
    ``takes`` are those that it can follow besides.
    ``notes`` are what the user should know of the experts, such as that they do not compute what the base computes.
    """

    follows: ClassVar[str | None] = None
    takes: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[tuple[str, ...]] = ()

    def num_experts(self, options: UpcycleConfig) -> int:
        """Experts of a layer, E. Raises ``ConfigError`` for options that cannot be followed."""
        return options.experts * options.routed_slices

    def width(self, options: UpcycleConfig, width: int) -> int:
        """Neurons of an expert, where the dense FFN has ``width``."""
        return width

    @abstractmethod
    def piece(self, of: Ingredients, layer: int, role: str, expert: int) -> Piece:
        """What makes one tensor of one expert; ``role`` is gate, up, down, up_bias or down_bias."""


class _Copies(Recipe):
    """Every expert is a copy of the base's FFN with noise of its own."""

    def piece(self, of: Ingredients, layer: int, role: str, expert: int) -> Piece:
        return of.piece(layer, role, expert)


class _Sources(Recipe):
    """The entries of ``experts_from`` are dealt out in turn, and only repeats take noise."""

    follows = "experts_from"

    def piece(self, of: Ingredients, layer: int, role: str, expert: int) -> Piece:
        entry, noisy = of.dealt(expert)
        return of.piece(layer, role, expert, entry=entry, noisy=noisy)


class _Slices(Recipe):
    """An expert is a copy of one slice: a G-th of the neurons, and 1 / G of the last bias.

    With weights that sum to 1 in each slice the mixture computes what the base computes. Of several entries copy c of
    every slice is made of the same one, so that a router can choose a whole source.
    """

    follows = "slices"
    takes = ("experts_from",)

    def width(self, options: UpcycleConfig, width: int) -> int:
        if width % options.slices:
            raise ConfigError(
                f"the feed-forward network has {width} neurons, which --slices {options.slices} does not divide",
                f"pass a number that divides {width}, or leave --slices out",
            )
        return width // options.slices

    def piece(self, of: Ingredients, layer: int, role: str, expert: int) -> Piece:
        number, copy = of.numbering.place(expert)
        entry, noisy = of.dealt(copy) if of.options.experts_from else (0, True)
        index = of.slice_neurons(layer, number)
        weight = slice_share(role, of.options.slices)
        return of.piece(layer, role, expert, entry=entry, noisy=noisy, index=index, weight=weight)


class _Redrawn(Recipe):
    """In each expert a seeded share of the neurons is drawn anew, the same in every tensor; others take no noise."""

    follows = "reinit"
    notes = (
        "neurons are drawn anew: until it is trained, the mixture does not compute what the dense model computes",
    )

    def piece(self, of: Ingredients, layer: int, role: str, expert: int) -> Piece:
        from moeify.checkpoint.arithmetic import generator

        order = generator((of.options.seed, "reinit", layer, expert)).permutation(of.width)
        return of.redrawn(layer, role, expert, order[: round(of.width * of.options.reinit)])


_UPCYCLING = Citation(
    used_for="experts as copies of the dense feed-forward layers",
    authors="Komatsuzaki et al.",
    title="Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
    arxiv="2212.05055",
)
_MIXING = Citation(
    used_for="experts from models that were trained apart",
    authors="Sukhbaatar et al.",
    title="Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM",
    arxiv="2403.07816",
)
_LORA = Citation(
    used_for="experts from low-rank adapters",
    authors="Hu et al.",
    title="LoRA: Low-Rank Adaptation of Large Language Models",
    arxiv="2106.09685",
)
_GROUPED = Citation(
    used_for="experts as slices of the dense feed-forward layers, as many chosen in each slice",
    authors="Tang et al.",
    title="Pangu Pro MoE: Mixture of Grouped Experts for Efficient Sparsity",
    arxiv="2505.21411",
)
_DROP = Citation(
    used_for="neurons of experts drawn anew",
    authors="Nakamura et al.",
    title="Drop-Upcycling: Training Sparse Mixture of Experts with Partial Re-initialization",
    arxiv="2502.19261",
)
NULLS = Citation(
    used_for="null experts",
    authors="Jin et al.",
    title="MoE++: Accelerating Mixture-of-Experts Methods with Zero-Computation Experts",
    arxiv="2410.07348",
)
RECIPES = Table[Recipe](
    "recipe",
    _Copies(name="copies", help="of the checkpoint itself", paper=_UPCYCLING),
    _Sources(name="sources", help="of --experts-from", paper=_MIXING),
    _Slices(name="slices", help="of the parts that --slices names", paper=_GROUPED),
    _Redrawn(name="redrawn", help="with --reinit of the neurons drawn anew", paper=_DROP),
    used_for="the way its experts were made, {name}",
)


_FOLLOWED = {"experts_from": (), "slices": 1, "reinit": 0}
"""Options that a recipe exists for, and what they are where none is asked for."""


def papers(recipe: Recipe, origins: Iterable[ExpertOrigin], router: str) -> list[Citation]:
    """What the experts of ``recipe`` and a start of their routers rest on."""
    origins = tuple(origins)
    mixed = [] if recipe.name == "sources" or not origins else RECIPES.cited("sources")
    adapted = [_LORA] if any(origin.adapter for origin in origins) else []
    return [*RECIPES.cited(recipe.name), *mixed, *adapted, *([DOMAINS] if router == "data" else [])]


def register_recipe(row: Recipe) -> None:
    """Let ``upcycle`` make experts in a further way.

    Raises ``ConfigError`` for a name that is taken.
    """
    RECIPES.register(row)


def recipe_for(options: UpcycleConfig) -> Recipe:
    """The recipe that ``options`` name, or that follows from them.

    Raises ``ConfigError`` for options that it cannot follow.
    """
    given = [option for option, default in _FOLLOWED.items() if getattr(options, option) != default]
    implied = [row for row in RECIPES.values() if row.follows in given]
    implied.sort(key=lambda row: not {*given} <= {row.follows, *row.takes})
    name = options.recipe or (implied[0].name if implied else "copies")
    recipe = RECIPES[name]
    if recipe.follows is not None and recipe.follows not in given:
        flag = recipe.follows.replace("_", "-")
        raise ConfigError(
            f"--recipe {name} needs --{flag}, which is not given", f"pass --{flag}, or leave --recipe out"
        )
    for option in given:
        if option not in (recipe.follows, *recipe.takes):
            flag = option.replace("_", "-")
            raise ConfigError(f"recipe {name} has no use for --{flag}", f"leave --{flag} out")
    recipe.num_experts(options)
    return recipe
