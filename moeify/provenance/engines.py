"""Which programs load which kind of mixture, and what they make of it."""

from __future__ import annotations

from dataclasses import dataclass

from moeify.families.base import Config, Family

__all__ = ["Engine", "engines", "ignores_renormalisation"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A program, whether it computes what transformers computes, and why not."""

    name: str
    verdict: str


def ignores_renormalisation(family: Family, config: Config) -> bool:
    """Whether llama.cpp and mlx-lm compute something else, because they do not renormalise."""
    renormalised = config.get("norm_topk_prob", False) is True
    return family.moe.model_type == "qwen2_moe" and renormalised and family.moe.top_k(config) >= 1


def engines(family: Family | None, config: Config) -> tuple[Engine, ...]:
    """What is known of the programs that people run these checkpoints in.

    ``family`` is None for models that moeify cuts but does not make.
    """
    if family is None:
        return (
            Engine(name="transformers", verdict=_NATIVE),
            Engine(name="others", verdict="not tested: those that run the original model"),
        )
    if family.remote_code:
        kind = family.moe.model_type
        return (
            Engine(name="transformers", verdict="yes, with the code in this repository"),
            Engine(name="vLLM, SGLang, llama.cpp, mlx-lm", verdict=f"no: they do not know {kind}"),
        )
    return (
        Engine(name="transformers", verdict=_NATIVE),
        Engine(name="vLLM", verdict=_vllm(config)),
        Engine(name="SGLang", verdict=_UNTRIED),
        Engine(name="llama.cpp", verdict=_llama_cpp(family, config)),
        Engine(name="mlx-lm", verdict=_mlx(family, config)),
    )


def _vllm(config: Config) -> str:
    empty = config.get("shared_expert_intermediate_size") == 0
    return _EMPTY_SHARED_EXPERT if empty else _UNTRIED


def _llama_cpp(family: Family, config: Config) -> str:
    if ignores_renormalisation(family, config):
        return _ELSEWHERE
    if len(family.moe.moe_layers(config)) < family.dense.num_layers(config):
        return "no: its converter takes such a model only if every layer is a mixture"
    return "yes"


def _mlx(family: Family, config: Config) -> str:
    return _ELSEWHERE if ignores_renormalisation(family, config) else "yes"


_NATIVE = "yes, with its own classes"
_UNTRIED = "it has a class of its own for this model type; not run by moeify"
_EMPTY_SHARED_EXPERT = (
    "no, as far as its source tells (0.33, not run): it has no place for the empty shared expert;"
    " moeify upcycle --compat gguf writes a form without it"
)
_ELSEWHERE = (
    "no: it wants an untied lm_head and a shared expert, and ignores norm_topk_prob for Qwen2-MoE;"
    " moeify upcycle --compat gguf writes a form that is right there"
)
