"""DeepSeek-V2: a softmax of all logits, whose weights are not renormalised."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.values import Config

_RULE = RouterRule(norm_default=False, scaling_key="routed_scaling_factor", group_best=1)


def _rule(config: Config) -> RouterRule:
    if config.get("topk_method") == "group_limited_greedy":
        return replace(_RULE, groups=("n_group", "topk_group"))
    return _RULE


LAYOUT = MoeLayout(
    model_type="deepseek_v2",
    class_prefix="DeepseekV2",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=32, hidden=4096, width=1407, vocab=102400),
    moe_layers=names.late_layers("first_k_dense_replace", first=0, default=32),
    num_experts_keys=names.ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=_RULE,
    rule_by=_rule,
    rest=Rest(
        per_layer=(*names.LLAMA_NORMS, *names.LATENT_ATTENTION),
        ffn=names.FFN,
        shared=names.gated("mlp.shared_experts"),
    ),
)
