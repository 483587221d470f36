"""How routers are set before training, by what was done to the checkpoint before."""

from __future__ import annotations

from moeify.families.numbering import Numbering
from moeify.provenance.record import Record
from moeify.routing.data import Blocks
from moeify.warming.config import WarmupConfig

_SETTING = ("upcycle", "add", "attach", "warmup")
"""Steps that set routers."""


def fit_method(config: WarmupConfig, record: Record) -> str:
    """The method that ``config`` asks for; auto leaves routers alone that text has set already."""
    if config.fit != "auto":
        return config.fit
    setting = [s for s in record.steps if s.command in _SETTING]
    fitted = bool(setting) and setting[-1].options.get("router") in ("data", "prompts")
    if not setting or setting[-1].command == "warmup" or fitted:
        return "none"
    return "kmeans" if config.domain_column is None else "domains"


def expert_owners(record: Record, blocks: Blocks, numbering: Numbering) -> list[int] | None:
    """The domain of each copy, the same in every slice, where experts are labelled with the names of all domains."""
    labels = record.expert_labels(numbering.num_experts)
    if labels is None or set(labels) != set(blocks.domain_names):
        return None
    return [blocks.domain_names.index(labels[expert]) for expert in numbering.of_slice(0)]
