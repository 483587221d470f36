"""Cohere2's mixtures, whose scores are a softmax or a sigmoid of the chosen logits."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.dense.cohere2 import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout, RouterRule
from moeify.families.values import Config


def _rule(config: Config) -> RouterRule:
    if config.get("expert_selection_fn") == "sigmoid":
        return RouterRule(scores="sigmoid", norm_key="norm_topk_prob")
    return RouterRule()


LAYOUT = MoeLayout(
    model_type="cohere2_moe",
    class_prefix="Cohere2Moe",
    experts=names.single_experts("mlp"),
    norm=DENSE.norm,
    dims=names.decoder_dims("intermediate_size", layers=40, hidden=8192, width=22528, vocab=256000),
    moe_layers=names.sparse_layers(40, "first_k_dense_replace", first=0),
    num_experts_keys=("num_experts", "num_local_experts"),
    shared_keys=("num_shared_experts",),
    rule_by=_rule,
    rest=DENSE.rest(names.gated("mlp.shared_experts")),
)
