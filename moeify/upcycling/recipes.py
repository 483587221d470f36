"""How experts are made: each way to make them is one recipe, found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from moeify.errors import ConfigError
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

    ``from_sources`` says whether it takes the entries of ``experts_from``; ``notes`` are what the
    user should know of the experts, such as that they do not compute what the base computes.
    """

    from_sources: ClassVar[bool] = False
    notes: ClassVar[tuple[str, ...]] = ()

    def num_experts(self, options: UpcycleConfig) -> int:
        """Experts of a layer, E. Raises ``ConfigError`` for options that cannot be followed."""
        return options.experts

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

    from_sources = True

    def piece(self, of: Ingredients, layer: int, role: str, expert: int) -> Piece:
        number = expert % len(of.entries)
        before = of.entries if expert >= len(of.entries) else of.entries[:number]
        folder = of.entries[number].source.folder
        repeated = any(entry.source.folder == folder for entry in before)
        return of.piece(layer, role, expert, entry=number, noisy=repeated)


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
RECIPES = Table[Recipe](
    "recipe",
    _Copies(name="copies", help="of the checkpoint itself", paper=_UPCYCLING),
    _Sources(name="sources", help="of --experts-from", paper=_MIXING),
    used_for="the way its experts were made, {name}",
)


def papers(recipe: Recipe, origins: Iterable[ExpertOrigin], router: str) -> list[Citation]:
    """What the experts of ``recipe`` and a start of their routers rest on."""
    adapted = [_LORA] if any(origin.adapter for origin in origins) else []
    return [*RECIPES.cited(recipe.name), *adapted, *([DOMAINS] if router == "data" else [])]


def register_recipe(row: Recipe) -> None:
    """Let ``upcycle`` make experts in a further way.

    Raises ``ConfigError`` for a name that is taken.
    """
    RECIPES.register(row)


def recipe_for(options: UpcycleConfig) -> Recipe:
    """The recipe that ``options`` name, or that follows from them.

    Raises ``ConfigError`` for options that it cannot follow.
    """
    name = options.recipe or ("sources" if options.experts_from else "copies")
    recipe = RECIPES[name]
    if recipe.from_sources and not options.experts_from:
        raise ConfigError(
            f"--recipe {name} makes experts from --experts-from, which names none",
            "pass --experts-from, or leave --recipe out",
        )
    if options.experts_from and not recipe.from_sources:
        raise ConfigError(
            f"--recipe {name} has no use for --experts-from: its experts are made of the base",
            "leave --experts-from out, or --recipe",
        )
    recipe.num_experts(options)
    return recipe
