"""Models around a language model whose type ``text_config`` names: layouts of the two together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from moeify.errors import CheckpointError
from moeify.families.base import DenseLayout
from moeify.families.conversion import Conversion
from moeify.families.dense_names import seeing_heads
from moeify.families.engines import TRANSFORMERS, VLLM_TEXT
from moeify.families.keys import wrapped_key
from moeify.families.moe_layout import MoeLayout
from moeify.families.values import Config, text_config, with_text

T = TypeVar("T")
_WRITTEN = "language_model."
_PREFIXES = (f"{_WRITTEN}model.", "model.language_model.")  # as in files, and as transformers 5 holds them
_TOWERS = ("vision_tower.", "multi_modal_projector.")


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A model around any language model; ``ties`` tells from its config whether embeddings are shared."""

    model_type: str
    class_prefix: str
    ties: Callable[[Config], bool]

    def dense(self, text: DenseLayout) -> DenseLayout:
        """Its layout around a dense language model."""
        kinds = text.kinds
        return replace(
            text,
            model_type=wrapped_key(self.model_type, text.model_type),
            class_prefix=self.class_prefix,
            prefixes=_PREFIXES,
            heads=seeing_heads(_PREFIXES[0], base=_PREFIXES[0], output=_WRITTEN),
            dims=_of_text(text.dims),
            kinds=kinds and _of_text(kinds),
            only_if={name: _of_text(holds) for name, holds in text.only_if.items()},
            towers=(*_TOWERS, *(f"model.{tower}" for tower in _TOWERS)),
            aliases={**text.aliases, "lm_head.weight": f"{_WRITTEN}lm_head.weight"},
            canonical=lambda config: self._canonical(config, text),
        )

    def _canonical(self, config: Config, text: DenseLayout) -> Config:
        if not isinstance(config.get("text_config"), dict):
            raise CheckpointError(
                f"config.json of this {self.model_type} has no text_config, which describes its language model",
                "use the config.json that belongs to these weights",
            )
        return {**with_text(config, text.canonical), "tie_word_embeddings": self.ties(config)}

    def mixture(self, text: MoeLayout, dense: DenseLayout) -> MoeLayout:
        """Its layout around a mixture; ``dense`` is that around the dense language model."""
        rest = replace(text.rest, towers=dense.towers, lacks={"Model": text.rest.heads})
        return replace(
            text,
            model_type=wrapped_key(self.model_type, text.model_type),
            class_prefix=self.class_prefix,
            prefixes=_PREFIXES,
            rest=rest,
        )

    def conversion(self, dense: DenseLayout, moe: MoeLayout, text: Conversion) -> Conversion:
        """What the language model becomes, the rest carried along."""
        return replace(
            text,
            dense=dense,
            moe=moe,
            to_moe=lambda config, settings: _inside(config, lambda part: text.to_moe(part, settings), text.moe),
            to_dense=lambda config: _inside(config, text.to_dense, text.dense),
            came_from=_of_text(text.came_from),
            heads=None,
            head_prefixes={},
            engines=(TRANSFORMERS, VLLM_TEXT),
            notes=tuple((_of_text(test), said) for test, said in text.notes),
        )


def _of_text(read: Callable[[Config], T]) -> Callable[[Config], T]:
    return lambda config: read(text_config(config))


def _inside(config: Config, change: Callable[[Config], Config], layout: DenseLayout | MoeLayout) -> Config:
    """``config`` with its text part changed; other engines look for the class's name in there."""

    def changed(part: Config) -> Config:
        named = {"architectures": [f"{layout.class_prefix}ForCausalLM"]} if part.get("architectures") else {}
        return {**change(part), **named}

    return with_text(config, changed)


def _said(config: Config, usual: bool) -> bool:
    value = config.get("tie_word_embeddings")
    return usual if value is None else bool(value)


WRAPPERS: Mapping[str, Wrapper] = {
    "llava": Wrapper(
        model_type="llava",
        class_prefix="Llava",
        ties=lambda config: _said(config, False) or _said(text_config(config), False),
    ),
    "mistral3": Wrapper(model_type="mistral3", class_prefix="Mistral3", ties=lambda config: _said(config, True)),
}
