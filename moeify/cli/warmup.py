"""``moeify warmup``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from moeify.cli._options import (
    ChecksumOption,
    ForceOption,
    JsonOption,
    OutputArgument,
    PushToOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    epilog,
)
from moeify.cli._output import Output, size, written
from moeify.cli._pushing import check_push_target, push_after
from moeify.warming.config import Balance, ComputeDtype, Fit, Loss, Trained, WarmupConfig

if TYPE_CHECKING:
    from moeify.warming.report import LayerChange, WarmupReport

EPILOG = epilog(
    "moeify warmup ./my-moe --dataset text.jsonl --steps 0",
    "moeify warmup ./my-moe warm --dataset allenai/c4 --streaming --steps 500 --dense ./dense",
    "moeify warmup ./my-moe warm --dataset mixed.jsonl --domain-column domain --plot load.svg",
    "torchrun --nproc-per-node 2 -m moeify warmup ./my-moe warm --dataset text.jsonl",
)
_DEFAULT = WarmupConfig(dataset="-")


def command(
    checkpoint: Annotated[str, typer.Argument(help="Mixture of experts: a folder or a Hub id.")],
    dataset: Annotated[
        str,
        typer.Option(
            metavar="FILE|ID", help=".txt, .jsonl, .json, .csv, .parquet, or a dataset on the Hub."
        ),
    ],
    output: OutputArgument = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = _DEFAULT.split,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = _DEFAULT.text_column,
    domain_column: Annotated[
        str | None, typer.Option(help="Column with each text's domain; experts follow it.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read the dataset while it downloads.")
    ] = False,
    max_samples: Annotated[int | None, typer.Option(help="Texts to read at most.")] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens of a block; 512 or the model's limit if left out.")
    ] = None,
    fit: Annotated[
        str, typer.Option(metavar="auto|kmeans|domains|none", help="How routers are set first.")
    ] = _DEFAULT.fit,
    steps: Annotated[
        int, typer.Option(help="Training steps; 0 stops after the fit.")
    ] = _DEFAULT.steps,
    train: Annotated[
        str, typer.Option(metavar="routers|moe|all", help="What is trained.")
    ] = _DEFAULT.train,
    loss: Annotated[
        str, typer.Option(metavar="auto|causal|masked|distill", help="What is learnt.")
    ] = _DEFAULT.loss,
    balance: Annotated[
        str, typer.Option(metavar="switch|cv2|kl|none", help="Loss that keeps the load even.")
    ] = _DEFAULT.balance,
    balance_coef: Annotated[float, typer.Option(help="Its weight.")] = _DEFAULT.balance_coef,
    z_coef: Annotated[float, typer.Option(help="Weight of the z-loss.")] = _DEFAULT.z_coef,
    learning_rate: Annotated[
        float, typer.Option(help="Largest learning rate.")
    ] = _DEFAULT.learning_rate,
    batch_size: Annotated[
        int, typer.Option(help="Blocks of a micro-batch on each device.")
    ] = _DEFAULT.batch_size,
    accumulate: Annotated[int, typer.Option(help="Micro-batches of a step.")] = _DEFAULT.accumulate,
    fit_tokens: Annotated[
        int, typer.Option(help="Tokens to fit routers to.")
    ] = _DEFAULT.fit_tokens,
    eval_tokens: Annotated[
        int, typer.Option(help="Held-out tokens to measure on.")
    ] = _DEFAULT.eval_tokens,
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16", help="Dtype to compute in.")
    ] = _DEFAULT.dtype,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; an accelerator if left out.")
    ] = None,
    dense: Annotated[
        str | None, typer.Option(help="Dense model to compare with.", metavar="DIR|ID")
    ] = None,
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints of the run.")
    ] = _DEFAULT.save_steps,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was interrupted.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Plot loads and loss into an .svg or .png file.")
    ] = None,
    seed: SeedOption = _DEFAULT.seed,
    revision: RevisionOption = None,
    push_to: PushToOption = None,
    force: ForceOption = False,
    checksum: ChecksumOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit and train the routers of a mixture on text, and nothing else."""
    config = WarmupConfig(
        dataset=dataset, split=split, text_column=text_column, domain_column=domain_column,
        streaming=streaming, max_samples=max_samples, seq_len=seq_len, seed=seed,
        fit=cast(Fit, fit), steps=steps, train=cast(Trained, train), loss=cast(Loss, loss),
        balance=cast(Balance, balance), balance_coef=balance_coef, z_coef=z_coef,
        learning_rate=learning_rate, batch_size=batch_size, accumulate=accumulate,
        fit_tokens=fit_tokens, eval_tokens=eval_tokens, dtype=cast(ComputeDtype, dtype),
        device=device, dense=dense, save_steps=save_steps, resume=resume, plot=plot,
        revision=revision, force=force,
        checksum=checksum,
    )  # fmt: skip
    check_push_target(push_to)
    from moeify.warming.warmup import warmup

    first = int(os.environ.get("RANK", "0")) == 0  # of several processes only one reports
    out = Output(as_json=as_json and first, quiet=quiet or not first)
    with out.status("warming up routers"):
        report = warmup(checkpoint, output, config)
    _show(out, report)
    push_after(out, report.output, push_to if first else None)


def _show(out: Output, report: WarmupReport) -> None:
    out.document(report.to_dict())
    for note in report.notes:
        out.warning(note)
    rows = [*_summary(report), *((f"layer {c.layer}", _layer(c)) for c in report.layers)]
    out.table(f"{report.source} warmed up became {report.output}", rows)
    out.hint(f"moeify inspect {report.output}")


def _summary(report: WarmupReport) -> list[tuple[str, str]]:
    dense = "" if report.eval_loss_dense is None else f", dense {report.eval_loss_dense:#.5g}"
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
        (f"{report.loss} loss", f"{report.eval_loss_before:#.5g} -> {report.eval_loss_after:#.5g},"
                                f" random routing {report.eval_loss_random:#.5g}{dense}"),
        *((f"of {name}", f"{loss.before:#.5g} -> {loss.after:#.5g}")
          for name, loss in report.domain_losses.items()),
        ("bytes", written(report.bytes_written, report.files_linked, report.files_copied)),
        ("time", f"{report.seconds:.1f} s"),
    ]  # fmt: skip


def _headroom(report: WarmupReport) -> str:
    """What routing is worth before training."""
    room = report.headroom
    if room.experts_identical:
        return "none: the experts are identical"
    return (
        f"loss {room.loss_learned:#.5g} as routed, {room.loss_random:#.5g} at random,"
        f" {room.loss_static:#.5g} by expert {room.static_expert} alone"
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
