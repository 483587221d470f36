"""``moeify upcycle``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moeify.cli._options import DryRunOption, OutputArgument, PushToOption
from moeify.cli._output import Output
from moeify.cli._pushing import check_push_target, push_after
from moeify.cli._text import count, loss, size
from moeify.upcycling.config import UpcycleConfig

if TYPE_CHECKING:
    from moeify.upcycling.upcycle import UpcycleReport

EXAMPLES = (
    "moeify upcycle bert-base-uncased --experts 8",
    "moeify upcycle ./my-qwen3 out --experts 8 --top-k 2 --noise 0.01 --layers odd",
    "moeify upcycle bert-base-uncased --slices 4 --experts 4 --top-k 1",
    "moeify upcycle Qwen/Qwen3-0.6B --experts 4 --dry-run --json",
    "moeify upcycle bert-base-uncased bert-moe --experts 8 --push-to me/bert-moe",
    "moeify upcycle ./base ./moe --experts-from ./code,./german --labels code,german",
    "moeify upcycle ./base ./moe --experts-from ./code,./german --labels code,german"
    " --router data --dataset texts.jsonl --domain-column domain",
)
FIRST = (
    "num_experts",
    "top_k",
    "layers",
    "noise",
    "router",
    "experts_from",
    "labels",
    "route_by",
    "engines",
    "dry_run",
)


def command(
    out: Output,
    config: UpcycleConfig,
    source: Annotated[str, typer.Argument(help="Dense checkpoint: a folder or a Hub id.")],
    output: OutputArgument = None,
    dry_run: DryRunOption = False,
    push_to: PushToOption = None,
) -> None:
    """Turn the feed-forward layers of a dense checkpoint into experts."""
    check_push_target(push_to)
    from moeify.upcycling.upcycle import upcycle

    report = upcycle(source, output, config, dry_run=dry_run)
    revision = config.revision
    _show(out, report, source if revision is None else f"{source}@{revision}")
    if not dry_run:
        push_after(out, report.output, push_to)


def _show(out: Output, report: UpcycleReport, source: str) -> None:
    out.document(report.to_dict(), report.warnings)
    rows = [
        ("model", f"{report.family} -> {report.model_type}"),
        ("MoE layers", f"{len(report.moe_layers)} of {report.num_layers}"),
        (
            "experts",
            f"{report.num_experts}, top-{report.top_k}"
            + (f", in {report.slices} slices" if report.slices > 1 else "")
            + (f", {report.shared_slices} more for every token" if report.shared_slices else "")
            + (f", {report.null_experts} null ones" if report.null_experts else "")
            + (", one choice for a sequence" if report.route_by == "sequence" else ""),
        ),
        (
            "parameters",
            f"{count(report.params_dense)} dense -> {count(report.params_total)} total,"
            f" {count(report.params_active)} active",
        ),
        ("bytes", f"{size(report.bytes_written)}, {size(report.bytes_carried)} beside them"),
        *(
            (f"from {origin.name}", f"experts {', '.join(map(str, origin.experts))}: {origin.label}")
            for origin in report.sources
        ),
    ]
    if report.label_agreement is not None:
        rows.append(("routers", f"{report.label_agreement:.1%} of the tokens go to their label"))
    if report.start is not None:
        start = report.start
        base = loss(start.dense, start.dense_error)
        found = f"{loss(start.mixture, start.mixture_error)} on {start.tokens:,} tokens, dense {base}"
        rows.append((f"{start.loss} loss", found))
    if not report.dry_run and (report.noise_effective or not (report.sources or report.reinit)):
        noise = f"asked for {report.noise_requested:g}, after rounding {report.noise_effective:.3g}"
        rows.append(("noise", noise))
    if not report.dry_run:
        rows.append(("time", f"{report.seconds:.1f} s"))
    verb = "would become" if report.dry_run else "became"
    out.table(f"{report.source} {verb} {report.output}", rows)
    if not report.dry_run:
        # Experts that differ from the base do not compute what it computes.
        check = f"inspect {report.output} --weights" if report.sources or report.reinit else None
        out.hint(f"moeify {check or f'verify {source} {report.output}'}")
