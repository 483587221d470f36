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


def engines(family: Family, config: Config) -> tuple[Engine, ...]:
    """What is known of the programs that people run these checkpoints in."""
    if family.remote_code:
        kind = family.moe.model_type
        return (
            Engine(name="transformers", verdict="yes, with the code in this repository"),
            Engine(name="vLLM, SGLang, llama.cpp, mlx-lm", verdict=f"no: they do not know {kind}"),
        )
    native = Engine(name="transformers, vLLM, SGLang", verdict="yes, with their own classes")
    if ignores_renormalisation(family, config):
        verdict = (
            "loads, and computes something else: they ignore norm_topk_prob for Qwen2-MoE and do"
            " not renormalise the weights of the chosen experts"
        )
    else:
        verdict = "yes"
    return (native, Engine(name="llama.cpp, mlx-lm", verdict=verdict))
