"""Nomic's text encoders of the second version, in their own files: experts flat, one bias for all."""

from __future__ import annotations

from moeify.families.moe_layout import ExpertTensor, MoeLayout, Rest, RouterRule
from moeify.families.values import Config, Dims, positive


def _dims(config: Config) -> Dims:
    hidden = positive(config, "n_embd", 768)
    return {
        "L": positive(config, "n_layer", 12),
        "H": hidden,
        "F": positive(config, "n_inner", 4 * hidden),
        "V": positive(config, "vocab_size", 30528),
    }


def _moe_layers(config: Config) -> tuple[int, ...]:
    step = config.get("moe_every_n_layers")
    if type(step) is not int or step < 1:
        return ()
    return tuple(layer for layer in range(_dims(config)["L"]) if layer % step == 1)


_BOTH = ("weight", "bias")

LAYOUT = MoeLayout(
    model_type="nomic_bert",
    class_prefix="NomicBert",
    encoder=True,
    unloadable="its class NomicBert is a dense one, and the mixture's code lies beside the original weights",
    prefixes=("bert.", "model."),
    layer="encoder.layers.{layer}.",
    router="mlp.router.layer.weight",
    experts=(
        ExpertTensor(name="mlp.experts.mlp.w1", roles=("up",), shape=("F", "H"), flat=True),
        ExpertTensor(name="mlp.experts.mlp.w2", roles=("down",), shape=("F", "H"), flat=True),
    ),
    norm="norm1.weight",
    norm_bias="norm1.bias",
    dims=_dims,
    moe_layers=_moe_layers,
    top_k_keys=("moe_top_k",),
    rule=RouterRule(norm_default=False),
    rest=Rest(
        outer=(
            "embeddings.word_embeddings.weight",
            "embeddings.token_type_embeddings.weight",
            "emb_ln.weight",
            "emb_ln.bias",
        ),
        optional=frozenset(("embeddings.token_type_embeddings.weight",)),
        per_layer=tuple(f"{part}.{end}" for part in ("attn.Wqkv", "attn.out_proj", "norm1", "norm2") for end in _BOTH),
        ffn=tuple(f"mlp.{part}.{end}" for part in ("fc1", "fc2") for end in _BOTH),
        shared=("mlp.experts.bias",),
        heads=("pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"),
        tied={},
        buffers=(".rotary_emb.inv_freq", "embeddings.position_ids"),
    ),
)
