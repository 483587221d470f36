"""``moeify upcycle``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from moeify.cli._options import (
    ForceOption,
    JsonOption,
    OutputArgument,
    PushToOption,
    QuietOption,
    RevisionOption,
    RouterOption,
    SeedOption,
    epilog,
)
from moeify.cli._output import Output, count, size
from moeify.cli._pushing import check_push_target, push_after
from moeify.routing.config import RouterInit
from moeify.upcycling.config import Compat, Dtype, UpcycleConfig

if TYPE_CHECKING:
    from moeify.upcycling.upcycle import UpcycleReport

EPILOG = epilog(
    "moeify upcycle bert-base-uncased --experts 8",
    "moeify upcycle ./my-qwen3 out --experts 8 --top-k 2 --noise 0.01 --layers odd",
    "moeify upcycle Qwen/Qwen3-0.6B --experts 4 --dry-run --json",
    "moeify upcycle bert-base-uncased --experts 8 --push-to me/bert-moe",
)
_DEFAULT = UpcycleConfig()


def command(
    source: Annotated[str, typer.Argument(help="Dense checkpoint: a folder or a Hub id.")],
    output: OutputArgument = None,
    experts: Annotated[int, typer.Option(help="Experts in each MoE layer.")] = _DEFAULT.num_experts,
    top_k: Annotated[int, typer.Option(help="Experts that each token visits.")] = _DEFAULT.top_k,
    layers: Annotated[
        str, typer.Option(help="all, odd, even, last-half, or 0,2,4-7.")
    ] = _DEFAULT.layers,
    noise: Annotated[
        float, typer.Option(help="Noise on the experts, relative to the weights' deviation.")
    ] = _DEFAULT.noise,
    router: RouterOption = _DEFAULT.router,
    seed: SeedOption = _DEFAULT.seed,
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", help="Dtype of the output.")
    ] = _DEFAULT.dtype,
    compat: Annotated[
        str, typer.Option(metavar="transformers|gguf", help="gguf: right in llama.cpp too.")
    ] = _DEFAULT.compat,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weights file.")
    ] = _DEFAULT.max_shard_size,
    revision: RevisionOption = None,
    force: ForceOption = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan's totals and stop.")] = False,
    push_to: PushToOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn the feed-forward layers of a dense checkpoint into experts."""
    config = UpcycleConfig(
        num_experts=experts, top_k=top_k, layers=layers, noise=noise,
        router=cast(RouterInit, router), seed=seed, dtype=cast(Dtype, dtype),
        compat=cast(Compat, compat), max_shard_size=max_shard_size, revision=revision, force=force,
    )  # fmt: skip
    check_push_target(push_to)
    from moeify.upcycling.upcycle import upcycle

    out = Output(as_json=as_json, quiet=quiet)
    with out.bytes_bar("upcycling") as progress:
        report = upcycle(source, output, config, dry_run=dry_run, progress=progress)
    _show(out, report, source if revision is None else f"{source}@{revision}")
    if not dry_run:
        push_after(out, report.output, push_to)


def _show(out: Output, report: UpcycleReport, source: str) -> None:
    out.document(report.to_dict())
    for warning in report.warnings:
        out.warning(warning)
    rows = [
        ("model", f"{report.family} -> {report.model_type}"),
        ("MoE layers", f"{len(report.moe_layers)} of {report.num_layers}"),
        ("experts", f"{report.num_experts}, top-{report.top_k}"),
        ("parameters", f"{count(report.params_dense)} dense -> {count(report.params_total)} total,"
                       f" {count(report.params_active)} active"),
        ("bytes", size(report.bytes_written)),
    ]  # fmt: skip
    if not report.dry_run:
        rows += [
            ("noise", f"asked for {report.noise_requested:g}, after rounding"
                      f" {report.noise_effective:.3g}"),
            ("time", f"{report.seconds:.1f} s"),
        ]  # fmt: skip
    verb = "would become" if report.dry_run else "became"
    out.table(f"{report.source} {verb} {report.output}", rows)
    if not report.dry_run:
        out.hint(f"moeify verify {source} {report.output}")
