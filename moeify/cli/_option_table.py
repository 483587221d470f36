"""How options are named and grouped, where a field's own name and type do not say it."""

from __future__ import annotations

PANELS = ("Details", "Text", "Training", "Computation", "Output")
"""Groups of the help behind the options that come first, in their order."""
_MEMBERS = {
    "Text": "prompts dataset split text_column assistant_only domain_column streaming max_samples max_tokens"
    " seq_len fit_tokens eval_tokens held_out text tokens",
    "Training": "balance balance_coef bias_rate null_rate null_coef z_coef learning_rate accumulate save_steps resume"
    " report_to",
    "Computation": "batch low_memory device dtype seed",
    "Output": "engines max_shard_size revision force checksum dry_run push_to as_json quiet",
}
PANEL_OF = {name: panel for panel, names in _MEMBERS.items() for name in names.split()}
METAVARS = {
    "against": "DIR|ID",
    "dataset": "FILES|ID",
    "domain_column": "NAME",
    "drop": "LAYER:N,...",
    "engines": "ENGINE,...",
    "expert": "N,...",
    "experts": "SOURCE,...",
    "experts_from": "SOURCE,...",
    "labels": "NAME,...",
    "layers": "LAYERS",
    "max_shard_size": "SIZE",
    "output": "FILE",
    "plot": "FILE.svg|.png",
    "reference": "DIR|ID",
    "revision": "REV",
    "routing": "RULE,...",
    "shares": "W,...",
    "tasks": "TASK,...",
    "sources": "NAME=PATH,...",
    "text_column": "NAME",
}
SHORT = {"yes": ("-y",)}
_FLAGS = {"engines": "for", "evaluate": "eval", "experts": "expert", "num_experts": "experts"}
"""Fields with another name on the command line; an option that may be repeated is singular."""


def flag_name(field: str) -> str:
    """The option of a field: ``top_k`` is --top-k."""
    return "--" + _FLAGS.get(field, field).replace("_", "-")
