"""Which programs load a kind of mixture, and what they make of it, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moeify.families.values import Config

Test = Callable[[Config], bool]
Said = tuple[tuple[Test, str], ...]
"""What is to be said of a mixture whose config passes a test."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A program, and whether it computes what transformers computes.

    The first of ``unless`` that is true of a config takes the place of ``verdict``.
    ``renormalises`` says whether it divides the weights of the chosen experts by their sum, and is
    None where it does not know the class or asks config.json.
    """

    name: str
    verdict: str
    unless: Said = ()
    renormalises: bool | None = None

    def but(self, *unless: tuple[Test, str]) -> Engine:
        """The same program with what it makes of certain configs."""
        return replace(self, unless=(*unless, *self.unless))

    def says(self, config: Config) -> str:
        """The verdict on the mixture that ``config`` describes."""
        return next((text for test, text in self.unless if test(config)), self.verdict)


def own_engines(model_type: str) -> tuple[Engine, ...]:
    """Those of moeify's own classes."""
    return (
        Engine(name="transformers", verdict="yes, with the code in this repository"),
        Engine(name="vLLM, SGLang, llama.cpp, mlx-lm", verdict=f"no: they do not know {model_type}"),
    )


TRANSFORMERS = Engine(name="transformers", verdict="yes, with its own classes")
VLLM = Engine(name="vLLM", verdict="yes")
VLLM_GENERIC = Engine(name="vLLM", verdict="yes, through its backend for transformers")
MLX = Engine(name="mlx-lm", verdict="yes", renormalises=True)
_UNTRIED = "it has a class of its own for this model type; not run by moeify"
_EMPTY_SHARED_EXPERT = (
    "no, as far as its source tells (0.33, not run): it has no place for the empty shared expert;"
    " moeify upcycle --compat gguf writes a form without it"
)
SGLANG = Engine(name="SGLang", verdict=_UNTRIED)
VLLM_CLASS = Engine(name="vLLM", verdict=_UNTRIED)
NATIVE = (
    TRANSFORMERS,
    Engine(
        name="vLLM",
        verdict=_UNTRIED,
        unless=((lambda config: config.get("shared_expert_intermediate_size") == 0, _EMPTY_SHARED_EXPERT),),
    ),
    SGLANG,
)
"""Programs with classes of their own for transformers' mixtures, as far as these were tried."""

FOREIGN = (TRANSFORMERS, Engine(name="others", verdict="not tested: those that run the original model"))
"""What is known of mixtures that moeify cuts but does not make."""
