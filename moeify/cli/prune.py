"""``moeify prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from moeify.cli._options import (
    ForceOption,
    JsonOption,
    OutputArgument,
    PushToOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    epilog,
)
from moeify.cli._output import Output, count, size
from moeify.cli._pushing import check_push_target, push_after
from moeify.pruning.config import CRITERIA, Criterion, PruneConfig

if TYPE_CHECKING:
    from moeify.pruning.report import PruneReport

EPILOG = epilog(
    "moeify prune ./my-moe ./half --ratio 0.5 --by reap --dataset book.txt",
    "moeify prune ./my-moe ./quarter --keep 2 --scores ./half/scores.json",
    "moeify prune Qwen/Qwen3-30B-A3B ./64 --keep 64 --by aimer",
    "moeify prune ./my-moe ./dense --keep 1 --dense",
)
_DEFAULT = PruneConfig(keep=1, by="random")


def command(
    checkpoint: Annotated[str, typer.Argument(help="Mixture of experts: a folder or a Hub id.")],
    output: OutputArgument = None,
    keep: Annotated[int | None, typer.Option(help="Experts that stay in each layer.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Part of the experts to drop, between 0 and 1.")
    ] = None,
    experts: Annotated[
        str | None, typer.Option(help="Experts to drop by hand: 0:1,5;1:2,3 or all:1,5.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Score that decides; reap if there is text or scores, else aimer.",
            metavar="|".join(CRITERIA),
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Text to calibrate on: a file or a Hub id.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = _DEFAULT.split,
    text_column: Annotated[
        str, typer.Option(help="Column that holds the text.")
    ] = _DEFAULT.text_column,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens to calibrate on at most.")
    ] = _DEFAULT.max_tokens,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a block.")] = None,
    batch: Annotated[int, typer.Option(help="Blocks in a batch.")] = _DEFAULT.batch_size,
    low_memory: Annotated[
        bool | None,
        typer.Option(
            "--low-memory/--no-low-memory",
            help="Hold one layer's weights at a time; by itself where the model does not fit.",
        ),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="scores.json to read, or to write where it is missing.")
    ] = None,
    protect: Annotated[
        bool, typer.Option(help="Keep super experts.")
    ] = _DEFAULT.protect,
    merge: Annotated[
        bool, typer.Option("--merge", help="Average dropped experts into the nearest kept ones.")
    ] = False,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="Undo the growth of weights that do not sum to 1.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Compare held-out loss with random pruning.")
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write a dense checkpoint of one expert a layer.")
    ] = False,
    seed: SeedOption = _DEFAULT.seed,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weights file.")
    ] = _DEFAULT.max_shard_size,
    revision: RevisionOption = None,
    push_to: PushToOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Take experts out of a mixture, by byte ranges, and measure it against chance."""
    config = PruneConfig(
        keep=keep, ratio=ratio, experts=experts, by=cast(Criterion | None, by), dataset=dataset,
        split=split, text_column=text_column, max_tokens=max_tokens, seq_len=seq_len,
        batch_size=batch, low_memory=low_memory, scores=scores, protect=protect, merge=merge,
        rescale=rescale, evaluate=evaluate, dense=dense, seed=seed, max_shard_size=max_shard_size,
        revision=revision, force=force,
    )  # fmt: skip
    check_push_target(push_to)
    from moeify.pruning.prune import prune

    out = Output(as_json=as_json, quiet=quiet)
    with out.steps_bar("pruning") as progress:
        report = prune(checkpoint, output, config, progress=progress)
    _show(out, report)
    push_after(out, report.output, push_to)


def _show(out: Output, report: PruneReport) -> None:
    out.document(report.to_dict())
    for warning in report.warnings:
        out.warning(warning)
    rows = [
        ("model", report.model_type),
        ("experts", f"{report.num_experts_before} -> {report.num_experts} in"
                    f" {len(report.kept)} layers, top-{report.top_k}, by {report.by}"),
        ("parameters", f"{count(report.params_before)} -> {count(report.params_after)}"),
        ("bytes", f"{size(report.bytes_before)} -> {size(report.bytes_written)}"),
        *_calibration(report),
        *_layers(report),
        *_loss(report),
        ("time", f"{report.seconds:.1f} s"),
    ]  # fmt: skip
    out.table(f"{report.source} became {report.output}", rows)


def _calibration(report: PruneReport) -> list[tuple[str, str]]:
    how = ", one layer in memory at a time" if report.layer_by_layer else ""
    return [("scores from", f"{report.tokens:,} tokens{how}")] if report.tokens else []


def _layers(report: PruneReport) -> list[tuple[str, str]]:
    """Kept and dropped experts of the first layers, with their scores."""
    rows = []
    for layer, dropped in list(report.dropped.items())[:4]:
        scores = report.scores.get(layer)
        named = [f"{e} ({scores[e]:.3g})" if scores else str(e) for e in dropped[:8]]
        more = f" and {len(dropped) - 8} more" if len(dropped) > 8 else ""
        rows.append((f"layer {layer} lost", ", ".join(named) + more))
    if len(report.dropped) > 4:
        rows.append(("", f"and {len(report.dropped) - 4} more layers: see --json"))
    if any(report.protected.values()):
        number = sum(map(len, report.protected.values()))
        rows.append(("protected", f"{number} super experts"))
    if report.gate_inflation:
        worst = max(report.gate_inflation.values())
        state = "folded into the down projections" if report.rescaled else "see --rescale"
        rows.append(("weights grow", f"up to {worst:.2f} x, {state}"))
    return rows


def _loss(report: PruneReport) -> list[tuple[str, str]]:
    loss = report.held_out
    if loss is None:
        return []
    rows = [
        ("held-out loss", f"{loss.before:.4f} before, {loss.after:.4f} after"),
        ("random pruning", f"{loss.random_mean:.4f} +- {loss.random_std:.4f}"
                           f" over {len(loss.random)} seeds"),
        ("verdict", "better than chance" if loss.better_than_chance
                    else "no better than chance on this text"),
    ]  # fmt: skip
    if loss.dropped is not None:
        rows.insert(1, ("without merging", f"{loss.dropped:.4f}"))
    return rows
