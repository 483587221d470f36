"""What the commands are tried on: every registered model type in every form of file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from moeify.families.registry import DENSE_LAYOUTS, MOE_LAYOUTS
from moeify.routing.loading import load_model
from tests.families import published_models
from tests.matrix import packing
from tests.tiny import LAYERS, save_tiny, sizes_of

DEMO = Path(published_models.__file__).parents[2] / "moeify" / "demo"
TEXT = DEMO / "text.jsonl"
TOKENS, EXPERTS = 2049, 8  # the shipped tokenizer's, and a mask token
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way in which checkpoints are found stored.

    ``save`` writes a model into a folder; ``fits`` says of a model type whether it is met in this
    form.
    """

    name: str
    meaning: str
    tied: bool = False
    dtype: str = "float32"
    save: Callable[[Any, Path], None] = lambda model, folder: model.save_pretrained(folder)
    fits: Callable[[str], bool] = lambda model_type: True
    options: dict[str, Any] = field(default_factory=dict)


def _in_memory(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, save_original_format=False)


def _converted(model_type: str) -> bool:
    """Whether transformers holds the experts of a type under other names than it writes."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping as mapping

    if model_type in DENSE_LAYOUTS:
        return False
    return any(mapping(name) is not None for name in (model_type.rpartition("+")[2], f"{model_type}_text"))


def _cut(method: str) -> Callable[[Any, Path], None]:
    return lambda model, folder: packing.save_packed(model, folder, method)


FORMS = (
    Form(name="float32", meaning="as `save_pretrained` writes it, embeddings untied"),
    Form(
        name="bfloat16",
        meaning="in bfloat16 with tied embeddings",
        tied=True,
        dtype="bfloat16",
        fits=lambda model_type: not _converted(model_type),
    ),
    Form(
        name="in memory",
        meaning="the same under names as transformers 5 holds them: `save_original_format=False`",
        tied=True,
        dtype="bfloat16",
        save=_in_memory,
        fits=lambda model_type: _converted(model_type),
    ),
    Form(
        name="slices",
        meaning="two slices of the feed-forward network with four experts each and a bias for choosing, in moeify's"
        " own classes",
        fits=lambda model_type: model_type in ("bert_moe", "gpt2_moe", "modernbert_moe"),
        options={"expert_slices": 2, "router_bias": True},
    ),
    Form(
        name="shared slices",
        meaning="two slices with four experts each, and two more that every token visits",
        fits=lambda model_type: model_type in ("bert_moe", "gpt2_moe"),
        options={"expert_slices": 2, "shared_slices": 2},
    ),
    Form(
        name="null experts",
        meaning="two null experts, a copy and a constant, beside eight others, and a bias for choosing",
        fits=lambda model_type: model_type == "gpt2_moe",
        options={"null_experts": 2, "null_kinds": ["copy", "constant"], "router_bias": True},
    ),
    Form(
        name="copies in slices",
        meaning="four copies in two slices each, which are a group of experts that tokens visit together",
        fits=lambda model_type: model_type == "dots1",
        options={"expert_slices": 2, "n_group": 4, "topk_group": 1},
    ),
    *(
        Form(
            name=method,
            meaning=meaning,
            save=_cut(method),
            fits=packing.carriers(method),
            options=packing.SIZES.get(method, {}),
        )
        for method, meaning in packing.METHODS.items()
    ),
)
FORM = {form.name: form for form in FORMS}
LOADABLE = tuple(name for name, layout in MOE_LAYOUTS.items() if layout.unloadable is None)
"""Mixtures that transformers has classes for."""


def cases() -> Iterator[tuple[str, str]]:
    """Model type and form of every row of the matrix."""
    for model_type in (*DENSE_LAYOUTS, *LOADABLE):
        yield from ((model_type, form.name) for form in FORMS if form.fits(model_type))


@dataclass(kw_only=True)
class Source:
    """A checkpoint on disk that a command is tried on."""

    model_type: str
    form: Form
    folder: Path

    @property
    def scores(self) -> Path:
        """Where the first command that scores experts on text leaves what the others read."""
        return self.folder.with_name("scores.json")

    @property
    def is_dense(self) -> bool:
        return self.model_type in DENSE_LAYOUTS

    @cached_property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return loaded

    @cached_property
    def model(self) -> Any:
        """As transformers loads it, in float32."""
        return load_model(self.folder, "float32")

    @property
    def slices(self) -> int:
        """In how many slices its experts lie, of each of which a token visits some."""
        return int(self.config.get("expert_slices") or 1)

    @cached_property
    def hashes(self) -> dict[str, str]:
        return hashes(self.folder)


def make(model_type: str, form_name: str, folder: Path) -> Source:
    """A tiny model of this type in this form, with a tokenizer as it is saved today."""
    form = FORM[form_name]
    source = Source(model_type=model_type, form=form, folder=folder)
    if source.is_dense:
        save_tiny(folder, model_type, dtype=form.dtype, vocab_size=TOKENS, tie_word_embeddings=form.tied)
    else:
        model = mixture(model_type, tied=form.tied, **form.options)
        form.save(model.to(getattr(torch, form.dtype)), folder)
    add_tokenizer(folder)
    return source


def mixture(model_type: str, *, tied: bool, **options: Any) -> Any:
    """A mixture whose experts differ, with every parameter and correction bias away from zero."""
    known = (published_models.NATIVE | published_models.TEXTS).get(model_type, {})
    sizes = sizes_of(published_models.OWN[model_type]) if model_type in published_models.OWN else known
    counts = {key: EXPERTS for key in _COUNTS if key in known} or {"num_experts": EXPERTS}
    if "mlp_only_layers" in known and model_type != "qwen3_next":
        counts["mlp_only_layers"] = []  # a dense class has one width
    if model_type in published_models.OWN:
        counts = {"num_experts": EXPERTS}
    counts |= _fewer_layers(sizes)
    model = published_models.tiny(model_type, tied=tied, **{"vocab_size": TOKENS, **counts, **options})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "inv_freq" not in name:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=draw))
            if "correction_bias" in name:
                tensor.abs_().mul_(0.3)  # no score falls below that of a masked group, 0
    model.tie_weights()
    return model


def _fewer_layers(sizes: dict[str, Any]) -> dict[str, Any]:
    """Three layers show as much as four and take less, where no list in the config names each layer's kind."""
    if any(isinstance(value, list) and len(value) == LAYERS for value in sizes.values()):
        return {}
    return {next((key for key in ("n_layer", "n_layers") if key in sizes), "num_hidden_layers"): 3}


def add_tokenizer(folder: Path) -> None:
    """The shipped tokenizer with a mask token, as ``AutoTokenizer.save_pretrained`` has it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "gpt2")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.model_max_length = int(1e30)  # what transformers writes where there is no limit
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == int(1e30)


def hashes(folder: Path) -> dict[str, str]:
    """The digest of every tensor, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {name: digest(tensor) for name, tensor in load_file(path).items()}
    return found


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    raw = tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + raw).hexdigest()


__all__ = ["FORMS", "Form", "LOADABLE", "Source", "cases", "digest", "hashes", "make"]
