"""Mixtures that moeify did not make and has no dense half for: Mixtral and OLMoE."""

from __future__ import annotations

from moeify.families.base import Config, ExpertTensor, MoeLayout, positive
from moeify.families.qwen2 import GATED_EXPERTS, decoder_dims

__all__ = ["MIXTRAL", "OLMOE"]


def _every_layer(config: Config) -> tuple[int, ...]:
    return tuple(range(positive(config, "num_hidden_layers")))


MIXTRAL = MoeLayout(
    model_type="mixtral",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=tuple(
        ExpertTensor(
            name=f"block_sparse_moe.experts.{{expert}}.{name}.weight", roles=(role,), shape=shape
        )
        for name, role, shape in (
            ("w1", "gate", ("F", "H")),
            ("w3", "up", ("F", "H")),
            ("w2", "down", ("H", "F")),
        )
    ),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims,
    moe_layers=_every_layer,
    num_experts_keys=("num_local_experts", "num_experts"),
)

OLMOE = MoeLayout(
    model_type="olmoe",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=GATED_EXPERTS,
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims,
    moe_layers=_every_layer,
)
