"""The model card of a checkpoint that no family's MoE half describes."""

from __future__ import annotations

from pathlib import Path

from moeify.families.base import Config
from moeify.provenance.base_card import inherited_metadata
from moeify.provenance.record import RECORD_FILE, Record

__all__ = ["write_plain_card"]

CARD_FILE = "README.md"


def write_plain_card(
    folder: Path, config: Config, record: Record, base_folder: Path | None = None
) -> None:
    """Write README.md into ``folder``: where the weights come from and what was done to them.

    Licence, languages and data sets are taken over from the card in ``base_folder``.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        **inherited_metadata(base_folder, "base_model"),
        library_name="transformers",
        tags=["moeify", _code(config.get("model_type"))],
    )
    command = _code(record.steps[-1].command if record.steps else "moeify")
    body = (
        f"# `{_code(record.source)}` after moeify {command}\n\n"
        f"Made from `{_code(record.source)}` with moeify. `{RECORD_FILE}` in this folder holds"
        " every option and which experts are left.\n\n"
        "## Limits\n\n- Taking experts out was not followed by training: measure the model on your"
        " own task before you rely on it.\n"
        "- Whatever limits and biases the original model has, this one has too."
    )
    text = f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _code(text: object) -> str:
    """Text from a file that cannot break out of a line or a code span."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    return printable.replace("`", "'").replace("<", " ").replace(">", " ")[:200]
