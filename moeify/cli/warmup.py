"""``moeify warmup``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeify.cli._options import MixtureArgument, OutputArgument, PushToOption
from moeify.cli._output import Output
from moeify.cli._pushing import check_push_target, push_after
from moeify.cli._text import loss, size, written
from moeify.warming.config import WarmupConfig

if TYPE_CHECKING:
    from moeify.warming.report import DomainLoss, LayerChange, WarmupReport

EXAMPLES = (
    "moeify warmup ./my-moe --dataset text.jsonl --steps 0",
    "moeify warmup ./my-moe warm --dataset allenai/c4 --streaming --steps 500 --reference ./dense",
    "moeify warmup ./my-moe warm --dataset mixed.jsonl --domain-column domain --plot load.svg",
    "torchrun --nproc-per-node 2 -m moeify warmup ./my-moe warm --dataset text.jsonl",
)
FIRST = ("dataset", "steps", "fit", "train", "loss", "learning_rate", "domain_column", "reference", "resume", "plot")


def command(
    out: Output,
    config: WarmupConfig,
    checkpoint: MixtureArgument,
    output: OutputArgument = None,
    push_to: PushToOption = None,
) -> None:
    """Fit and train the routers of a mixture on text, and nothing else."""
    check_push_target(push_to)
    from moeify.warming.run import is_main_process, leave_group
    from moeify.warming.warmup import warmup

    report = warmup(checkpoint, output, config)
    leave_group()
    _show(out, report)
    push_after(out, report.output, push_to if is_main_process() else None)


def _show(out: Output, report: WarmupReport) -> None:
    out.document(report.to_dict(), report.notes)
    rows = [*_summary(report), *((f"layer {c.layer}", _layer(c)) for c in report.layers)]
    out.table(f"{report.source} warmed up became {report.output}", rows)
    out.hint(f"moeify inspect {report.output}")


def _summary(report: WarmupReport) -> list[tuple[str, str]]:
    errors = report.eval_loss_errors
    dense = report.eval_loss_dense
    change = report.eval_loss_after - report.eval_loss_before
    fit = (
        f"{report.fit} in {report.fit_seconds:.1f} s after a pass of {report.collect_seconds:.1f} s"
        f" over {report.fit_tokens} tokens, {size(report.reservoir_bytes)} kept"
    )
    return [
        ("model", f"{report.model_type}, {report.num_experts} experts, top-{report.top_k}"),
        ("fit", "none: the routers were left alone" if report.fit == "none" else fit),
        ("training", f"{report.steps} steps, {report.tokens} tokens"),
        ("headroom", _headroom(report)),
        ("MaxVio", f"{report.max_violation_before:.3f} -> {report.max_violation_after:.3f}"),
        ("entropy", f"{report.entropy_before:.3f} -> {report.entropy_after:.3f}"),
        ("dead experts", f"{report.dead_before} -> {report.dead_after}"),
        (
            "experts a token",
            f"{report.experts_per_token_before:.2f} -> {report.experts_per_token_after:.2f}"
            if report.has_nulls
            else "",
        ),
        (
            f"{report.loss} loss",
            f"{loss(report.eval_loss_before, errors['before'])} -> {loss(report.eval_loss_after, errors['after'])}",
        ),
        ("its change", loss(change, errors["change"])),
        ("random routing", loss(report.eval_loss_random, errors["random"])),
        *([] if dense is None else [("dense", loss(dense, errors["dense"]))]),
        *((f"loss of {name}", _domain(found)) for name, found in report.domain_losses.items()),
        ("bytes", written(report.bytes_written, report.files_linked, report.files_copied)),
        ("time", f"{report.seconds:.1f} s"),
    ]


def _domain(found: DomainLoss) -> str:
    change = loss(found.after - found.before, found.change_error)
    return f"{loss(found.before, found.before_error)}, change {change}"


def _headroom(report: WarmupReport) -> str:
    """What routing is worth before training."""
    room = report.headroom
    if room.loss_static is None:
        return "none: the experts are identical"
    return (
        f"experts differ by {room.expert_difference:.2g} of their mean;"
        f" loss {room.loss_learned:#.5g} as routed, {room.loss_random:#.5g} at random,"
        f" {loss(room.loss_static, room.static_error)} by expert {room.static_expert} alone"
    )


def _layer(change: LayerChange) -> str:
    line = (
        f"MaxVio {change.max_violation_before:.2f} -> {change.max_violation_after:.2f},"
        f" entropy {change.entropy_before:.2f} -> {change.entropy_after:.2f},"
        f" dead {len(change.dead_before)} -> {len(change.dead_after)}"
    )
    if change.nmi_after is None:
        return line
    own = change.own_expert_fraction.values()
    if len(own) == len(change.load_after):  # with more experts, those of a domain share its tokens
        line += f", own first {sum(own) / len(own):.1%}"
    return f"{line}, NMI {change.nmi_after:.2f}"
