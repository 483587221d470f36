"""The model card (README.md) of a checkpoint, made from its config and its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.reader import read_config
from moeify.checkpoint.source import Source
from moeify.errors import UnsupportedModelError
from moeify.families.base import Config, Family
from moeify.families.registry import moe_family
from moeify.provenance.card_sections import (
    PLACEHOLDER,
    card_sections,
    pipeline_task,
)
from moeify.provenance.record import Record, expert_sources

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["CARD_FILE", "PLACEHOLDER", "card_text", "write_card"]

CARD_FILE = "README.md"
_INHERITED = ("license", "license_name", "license_link", "language", "datasets")


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
    suffix = str(config["architectures"][0]).removeprefix(family.class_prefixes[1])
    encoder = (folder / "modules.json").is_file()
    metadata = _metadata(family, record, suffix, encoder, _base_metadata(base_folder))
    body = "\n\n".join(card_sections(family, config, record, suffix, encoder))
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def _base_metadata(folder: Path | None) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    path = None if folder is None else folder / CARD_FILE
    if path is None or not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = vars(ModelCard(text, ignore_metadata_errors=True).data)
    except ValueError:  # a card without readable metadata has nothing to hand on
        return {}
    return {key: found[key] for key in _INHERITED if found.get(key) is not None}


def _metadata(
    family: Family, record: Record, suffix: str, encoder: bool, base: dict[str, Any]
) -> ModelCardData:
    from huggingface_hub import ModelCardData

    task = "sentence-similarity" if encoder else pipeline_task(suffix)
    tags = ["moe", "mixture-of-experts", "moeify", family.model_type]
    return ModelCardData(
        **base,
        **_origin(record),
        library_name="transformers",
        pipeline_tag=task,
        tags=[*tags, "sentence-transformers"] if encoder else tags,
    )


def _origin(record: Record) -> dict[str, Any]:
    """The models that it was made of, as far as they are on the Hub."""
    found = [(record.source, record.revision)]
    for step in record.steps:
        found += [(str(s.get("name")), s.get("revision")) for s in expert_sources(step)]
    # A folder's name as base_model would link to whatever model bears that name on the Hub.
    names = list(dict.fromkeys(name for name, revision in found if revision is not None))
    if not names:
        return {}
    if len(names) == 1:
        return {"base_model": names[0], "base_model_relation": "finetune"}
    return {"base_model": names, "base_model_relation": "merge"}
