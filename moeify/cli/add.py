"""``moeify add``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.cli._options import DryRunOption, MixtureArgument, OutputArgument, PushToOption
from moeify.cli._output import Output
from moeify.cli._pushing import check_push_target, push_after
from moeify.cli._text import written
from moeify.upcycling.config import AddConfig

if TYPE_CHECKING:
    from moeify.upcycling.adding import AddReport

EXAMPLES = (
    "moeify add ./moe ./moe4 --expert ./sql",
    "moeify add ./moe ./more --expert ./sql --expert ./logs --labels sql,logs --dry-run",
    "moeify add ./moe ./moe-logs --expert ./logs --router prompts --prompts logs.yaml",
)
FIRST = ("experts", "labels", "router", "prompts", "dataset", "domain_column", "dry_run")


def command(
    out: Output,
    config: AddConfig,
    checkpoint: MixtureArgument,
    output: OutputArgument = None,
    dry_run: DryRunOption = False,
    push_to: PushToOption = None,
) -> None:
    """Let dense checkpoints join a mixture as its last experts."""
    check_push_target(push_to)
    from moeify.upcycling.adding import add_experts

    report = add_experts(checkpoint, output, config, dry_run=dry_run)
    _show(out, report, dry_run)
    if not dry_run:
        push_after(out, report.output, push_to)


def _show(out: Output, report: AddReport, dry_run: bool) -> None:
    out.document(report.to_dict(), report.warnings)
    rows = [
        ("model", report.model_type),
        ("experts", f"{report.num_experts_before} -> {report.num_experts}, top-{report.top_k}"),
        *((f"from {o.name}", f"experts {', '.join(map(str, o.experts))}: {o.label}") for o in report.added),
        ("bytes", written(report.bytes_written, report.files_linked, report.files_copied)),
    ]
    if report.label_agreement is not None:
        rows.append(("routers", f"{report.label_agreement:.1%} of their tokens go there first"))
    rows.append(("time", f"{report.seconds:.1f} s"))
    verb = "would become" if dry_run else "became"
    out.table(f"{report.source} with more experts {verb} {report.output}", rows)
    if not dry_run:
        out.hint(f"moeify inspect {report.output} --weights")
