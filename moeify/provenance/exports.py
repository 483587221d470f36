"""What became of a checkpoint that was exported for engines which do not renormalise weights."""

from __future__ import annotations

from moeify.families.conversion import Conversion
from moeify.provenance.record import Record

__all__ = ["SCALED_FOR_OTHERS", "is_as_exported"]

SCALED_FOR_OTHERS = (
    "`--compat gguf` scaled the experts for flat routers and the top-k of that time. It has others"
    " now, so it no longer computes what its base computes, and has to be trained."
)


def is_as_exported(conversion: Conversion | None, record: Record) -> bool | None:
    """Whether routers are still as flat, and as many experts chosen, as when it was exported.

    None for a model that was not exported for such engines.
    """
    if conversion is None or conversion.gguf_renormalises is not False:
        return None
    same, top_k = None, None
    for step in record.steps:
        if step.command == "upcycle":
            same = True if step.options.get("compat") == "gguf" else None
            top_k = step.options.get("top_k")
        elif same is not None and step.command == "attach":
            kept = step.results.get("top_k", top_k) == top_k
            same = kept and step.options.get("router") == "zeros"
        elif same is not None and step.command == "warmup":
            same = False
    return same
