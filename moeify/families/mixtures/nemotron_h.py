"""Nemotron-H: each layer is attention, Mamba, an FFN or a mixture of experts without gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.moe_layout import ExpertTensor, MoeLayout, Rest
from moeify.families.values import Config, Dims, positive

_LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
_DEFAULT = ("linear_attention", "moe", "full_attention", "mlp")


def _kinds(config: Config) -> Sequence[str]:
    """What each layer is, as a list or, before transformers 5, as a string of letters."""
    listed, letters = config.get("layers_block_type"), config.get("hybrid_override_pattern")
    if isinstance(listed, list):
        return [str(kind) for kind in listed]
    return [_LETTERS.get(letter, letter) for letter in letters] if isinstance(letters, str) else _DEFAULT


def _dims(config: Config) -> Dims:
    hidden = positive(config, "hidden_size", 4096)
    return {
        "L": len(_kinds(config)),
        "H": hidden,
        "F": positive(config, "moe_intermediate_size", 7688),
        "V": positive(config, "vocab_size", 131072),
        "X": positive(config, "moe_latent_size", hidden),
    }


LAYOUT = MoeLayout(
    model_type="nemotron_h",
    class_prefix="NemotronH",
    prefixes=("backbone.", "model."),
    router="mixer.gate.weight",
    # Between the router's inputs and the experts' there may be a projection to a narrower state.
    own_inputs=True,
    experts=(
        ExpertTensor(name="mixer.experts.{expert}.up_proj.weight", roles=("up",), shape=("F", "X")),
        ExpertTensor(name="mixer.experts.{expert}.down_proj.weight", roles=("down",), shape=("X", "F")),
    ),
    norm="norm.weight",
    dims=_dims,
    kinds=_kinds,
    moe_layers=lambda config: tuple(n for n, kind in enumerate(_kinds(config)) if kind == "moe"),
    num_experts_keys=names.ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=replace(names.GROUPED, selection_bias="mixer.gate.e_score_correction_bias"),
    rest=Rest(
        outer=("embeddings.weight", "norm_f.weight"),
        tied={},  # whatever config.json says
        per_layer=(
            "norm.weight",
            *names.mamba2("mixer"),
            *(f"mixer.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")),
            *(f"mixer.{part}_proj.{kind}" for part in ("up", "down") for kind in ("weight", "bias")),
        ),
        shared=(
            *(f"mixer.{part}_latent_proj.{kind}" for part in ("fc1", "fc2") for kind in ("weight", "bias")),
            *(f"mixer.shared_experts.{part}_proj.{k}" for part in ("up", "down") for k in ("weight", "bias")),
        ),
        ignored=("mtp.",),
    ),
)
