"""Which programs load a kind of mixture, and what they make of it, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moeify.families.values import Config, ties_embeddings

Test = Callable[[Config], bool]
Said = tuple[tuple[Test, str], ...]
"""What is to be said of a mixture whose config passes a test."""

NAMES = ("llama.cpp", "mlx-lm", "vLLM", "SGLang")
"""Programs beside transformers that a form of a mixture can be chosen for."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A program, and whether it computes what transformers computes.

    The first of ``unless`` that is true of a config takes the place of ``verdict``. What begins
    with "no" keeps ``moeify upcycle --for`` from choosing that form.
    """

    name: str
    verdict: str
    unless: Said = ()

    def but(self, *unless: tuple[Test, str]) -> Engine:
        """The same program with what it makes of certain configs."""
        return replace(self, unless=(*unless, *self.unless))

    def says(self, config: Config) -> str:
        """The verdict on the mixture that ``config`` describes."""
        return next((text for test, text in self.unless if test(config)), self.verdict)

    def reason_against(self, config: Config) -> str | None:
        """Why it does not run the mixture that ``config`` describes; None where it may."""
        said = self.says(config)
        return said.removeprefix("no").lstrip(":, ") if said.startswith("no") else None


def own_engines(model_type: str, *, pooled: bool = False) -> tuple[Engine, ...]:
    """Those of moeify's own classes; ``pooled`` says of an encoder that vLLM gives its vectors."""
    unknown = f"no: it does not know {model_type}"
    vllm = "no: its transformers backend does not run this class"
    if pooled:
        vllm = 'yes, by `LLM(path, runner="pooling", trust_remote_code=True, model_impl="transformers")`'
    untried = (
        (lambda config: bool(config.get("null_experts")), "no: not tried with null experts"),
        (lambda config: bool(config.get("router_bias")), "no: not tried with a bias for choosing"),
    )
    return (
        Engine(name="transformers", verdict="yes, from version 5 on, with the code in this repository"),
        Engine(name="vLLM", verdict=vllm, unless=untried if pooled else ()),
        *(Engine(name=name, verdict=unknown) for name in ("SGLang", "llama.cpp", "mlx-lm")),
    )


def has_empty_shared_expert(config: Config) -> bool:
    """Whether the class has a place for a shared expert, and it has no neurons."""
    return config.get("shared_expert_intermediate_size") == 0


def ties(config: Config) -> bool:
    """Whether config.json says that the output embeddings are the input embeddings."""
    return ties_embeddings(config, False)


def wants_head(name: str) -> tuple[Test, str]:
    """Of a program that knows no tied output of a type, whose form for it has a matrix of its own."""
    return ties, f"no: it wants an lm_head of its own; `moeify upcycle --for {name}` writes one"


RUN = "yes"
"""Of engines whose tokens tests/engines holds against transformers'."""
TRANSFORMERS = Engine(name="transformers", verdict="yes, with its own classes")
VLLM = Engine(name="vLLM", verdict=RUN)
VLLM_TEXT = Engine(name="vLLM", verdict="yes, with text (0.32, by hand); pictures were not run")
VLLM_GENERIC = Engine(name="vLLM", verdict="yes, through its backend for transformers")
MLX = Engine(name="mlx-lm", verdict=RUN)
_UNTRIED = "it has a class of its own for this model type; not run by moeify"
_EMPTY_SHARED_EXPERT = (
    "no: it has no place for a shared expert without neurons; upcycle again with this version of moeify"
)
_TIED = "no, as far as its source tells (0.5.23, not run): it draws an lm_head where embeddings are tied"
SGLANG = Engine(name="SGLang", verdict=_UNTRIED, unless=((ties, _TIED),))
_EMPTY = (has_empty_shared_expert, _EMPTY_SHARED_EXPERT)
VLLM_CLASS = Engine(name="vLLM", verdict=_UNTRIED)
MLX_CLASS = Engine(name="mlx-lm", verdict=_UNTRIED)
NATIVE = (TRANSFORMERS, VLLM_CLASS.but(_EMPTY), SGLANG)
"""Programs with classes of their own for transformers' mixtures, as far as these were tried."""
NATIVE_RUN = (TRANSFORMERS, VLLM.but(_EMPTY), SGLANG)
"""The same where vLLM was run."""

FOREIGN = (TRANSFORMERS, Engine(name="others", verdict="not tested: those that run the original model"))
"""What is known of mixtures that moeify cuts but does not make."""
