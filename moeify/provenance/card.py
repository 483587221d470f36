"""The model card (README.md) of a checkpoint, made from its config and its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.reader import read_config
from moeify.checkpoint.source import Source
from moeify.errors import UnsupportedModelError
from moeify.families.base import Config, Family
from moeify.families.registry import moe_family
from moeify.provenance.base_card import inherited_metadata
from moeify.provenance.card_sections import PLACEHOLDER, card_sections, pipeline_task
from moeify.provenance.record import Record

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["CARD_FILE", "PLACEHOLDER", "card_text", "write_card"]

CARD_FILE = "README.md"


def write_card(
    folder: Path, family: Family, config: Config, record: Record, base_folder: Path | None = None
) -> None:
    """Write README.md into ``folder``.

    Licence, languages and data sets are taken over from the card in ``base_folder``.
    """
    text = _render(folder, family, config, record, base_folder)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def card_text(folder: Path) -> str:
    """The card of the checkpoint in ``folder``, which may have none of its own yet."""
    config = read_config(folder)
    record = Record.read(Source(folder=folder, name=folder.resolve().name))
    try:
        family = moe_family(config)
    except UnsupportedModelError:
        return "---\nlibrary_name: transformers\n---\n"
    return _render(folder, family, config, record, folder)


def _render(
    folder: Path, family: Family, config: Config, record: Record, base_folder: Path | None
) -> str:
    named = config.get("architectures") or [""]
    suffix = str(named[0]).removeprefix(family.class_prefixes[1])
    encoder = (folder / "modules.json").is_file()
    metadata = _metadata(family, record, suffix, encoder, inherited_metadata(base_folder))
    body = "\n\n".join(card_sections(family, config, record, suffix, encoder))
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def _metadata(
    family: Family, record: Record, suffix: str, encoder: bool, base: dict[str, Any]
) -> ModelCardData:
    from huggingface_hub import ModelCardData

    # A folder's name as base_model would link to whatever model bears that name on the Hub.
    origin: dict[str, Any] = {"base_model": record.source, "base_model_relation": "finetune"}
    task = "sentence-similarity" if encoder else pipeline_task(suffix)
    tags = ["moe", "mixture-of-experts", "moeify", family.model_type]
    return ModelCardData(
        **base,
        **(origin if record.revision is not None else {}),
        library_name="transformers",
        pipeline_tag=task,
        tags=[*tags, "sentence-transformers"] if encoder else tags,
    )
