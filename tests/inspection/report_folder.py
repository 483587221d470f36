"""A report with everything in it, for pictures and pages."""

import json
from pathlib import Path

from moeify.inspection.inspect import inspect
from moeify.inspection.report import InspectReport
from moeify.upcycling.upcycle import upcycle
from tests.real.checkpoints import demo_gpt2

TEXTS = {
    "code": "for i in range(10): print(i * i, end='') # squares, and 42 others\n" * 6,
    "<b>prose</b>": "the man of the land had in that hand the and of his father's rod.\n" * 6,
}


def full_report(folder: Path) -> InspectReport:
    """Routing by domain, vocabulary, comparison and weights of a small mixture."""
    for seed in (0, 1):
        upcycle(demo_gpt2(), folder / f"moe{seed}", num_experts=4, seed=seed)
    text = folder / "text.jsonl"
    rows = [json.dumps({"text": part, "domain": name}) for name, part in TEXTS.items()]
    text.write_text("\n".join(rows))
    return inspect(
        folder / "moe0",
        weights=True,
        reference=str(demo_gpt2()),
        dataset=str(text),
        seq_len=64,
        domain_column="domain",
        vocabulary=True,
        against=str(folder / "moe1"),
    )
