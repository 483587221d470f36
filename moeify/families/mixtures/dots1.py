"""dots.llm1: DeepSeek-V3's routing with plain attention."""

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="dots1",
    class_prefix="Dots1",
    experts=names.single_experts("mlp"),
    dims=names.with_shared(
        names.decoder_dims("moe_intermediate_size", layers=62, hidden=4608, width=1408, vocab=152064),
        "n_shared_experts",
        0,
    ),
    shared=names.shared_experts("mlp.shared_experts"),
    moe_layers=names.late_layers("first_k_dense_replace", first=0, default=62),
    num_experts_keys=names.ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=replace(names.TIED, norm_default=False),
    rest=Rest(
        per_layer=(*names.LLAMA_BIASED, *names.QK_NORMS), ffn=names.FFN, shared=names.gated("mlp.shared_experts")
    ),
)
