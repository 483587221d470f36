"""The model card (README.md) of a checkpoint, made from its config and its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.reader import Checkpoint, read_config
from moeify.checkpoint.source import Source
from moeify.families.values import Config
from moeify.provenance.base_card import inherited_metadata
from moeify.provenance.card_sections import card_sections
from moeify.provenance.record import Record, expert_sources
from moeify.provenance.subject import Subject

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD_FILE = "README.md"


def write_card(
    folder: Path, config: Config, record: Record, base_folder: Path | None = None, opened: Checkpoint | None = None
) -> None:
    """Write README.md into ``folder``, where weights and config.json lie already.

    Licence, languages and data sets are taken over from the card in ``base_folder``; ``opened`` is
    what lies in ``folder``, where it was read before.
    """
    text = _render(Subject.of(folder, config, record, opened), base_folder)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def card_text(folder: Path) -> str:
    """The card of the checkpoint in ``folder``, which may have none of its own yet."""
    record = Record.read(Source(folder=folder, name=folder.resolve().name))
    return _render(Subject.of(folder, read_config(folder), record), folder)


def _render(subject: Subject, base_folder: Path | None) -> str:
    metadata = _metadata(subject, inherited_metadata(base_folder))
    body = "\n\n".join(card_sections(subject))
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def _metadata(subject: Subject, data: dict[str, Any]) -> ModelCardData:
    from huggingface_hub import ModelCardData

    # A folder's name as base_model would link to whatever model bears that name on the Hub: there
    # it is the one that the folder's own card names.
    if origins := _origins(subject.record):
        data["base_model"] = origins if len(origins) > 1 else origins[0]
    if "base_model" in data:
        several = isinstance(data["base_model"], list) and len(data["base_model"]) > 1
        data["base_model_relation"] = "merge" if several else "finetune"
    kind = ["moe", "mixture-of-experts"] if subject.mixture is not None else []
    tags = [*kind, "moeify", subject.model_type]
    return ModelCardData(
        **data,
        library_name="transformers",
        pipeline_tag="sentence-similarity" if subject.encoder else subject.head.task,
        tags=[*tags, "sentence-transformers"] if subject.encoder else tags,
    )


def _origins(record: Record) -> list[str]:
    """The models on the Hub that it was made of."""
    found = [(record.source, record.revision)]
    for step in record.steps:
        found += [(str(s.get("name")), s.get("revision")) for s in expert_sources(step)]
    return list(dict.fromkeys(name for name, revision in found if revision is not None))
