"""``moeify upcycle``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from moeify.cli._adding import add, refuse_others
from moeify.cli._options import (
    ChecksumOption,
    ForceOption,
    JsonOption,
    OutputArgument,
    PushToOption,
    QuietOption,
    RevisionOption,
    SeedOption,
    comma_list,
    epilog,
    number_list,
    source_list,
)
from moeify.cli._output import Output, count, size
from moeify.cli._pushing import check_push_target, push_after
from moeify.routing.config import ROUTER_STARTS, RouterStart
from moeify.upcycling.config import RouterTextConfig, UpcycleConfig

if TYPE_CHECKING:
    from moeify.upcycling.upcycle import UpcycleReport

EPILOG = epilog(
    "moeify upcycle bert-base-uncased --experts 8",
    "moeify upcycle ./my-qwen3 out --experts 8 --top-k 2 --noise 0.01 --layers odd",
    "moeify upcycle Qwen/Qwen3-0.6B --experts 4 --dry-run --json",
    "moeify upcycle bert-base-uncased --experts 8 --push-to me/bert-moe",
    "moeify upcycle ./base ./moe --experts-from ./code,./german --labels code,german",
    "moeify upcycle ./base ./moe --experts-from ./code,./german --labels code,german"
    " --router data --dataset texts.jsonl --domain-column domain",
    "moeify upcycle ./moe ./moe-logs --add-experts ./logs --router prompts --prompts logs.yaml",
)
_DEFAULT = UpcycleConfig()


def command(
    source: Annotated[
        str,
        typer.Argument(help="Dense checkpoint, or a mixture to add to: a folder or a Hub id."),
    ],
    output: OutputArgument = None,
    experts: Annotated[
        int | None,
        typer.Option(help="Experts in each MoE layer; 8, or as many as --experts-from names."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Experts that each token visits.")] = _DEFAULT.top_k,
    layers: Annotated[
        str, typer.Option(help="all, odd, even, last-half, or 0,2,4-7.")
    ] = _DEFAULT.layers,
    noise: Annotated[
        float, typer.Option(help="Noise on the experts, relative to the weights' deviation.")
    ] = _DEFAULT.noise,
    router: Annotated[
        str, typer.Option(help="How the routers start.", metavar="|".join(ROUTER_STARTS))
    ] = _DEFAULT.router,
    experts_from: Annotated[
        list[str] | None,
        typer.Option(
            help="Make experts of these checkpoints or LoRA adapters; repeat it or use commas.",
            metavar="SOURCE,...",
        ),
    ] = None,
    add_experts: Annotated[
        list[str] | None,
        typer.Option(
            help="SOURCE is a mixture: let these dense checkpoints join it.", metavar="SOURCE,..."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="What each of them knows.", metavar="NAME,...")
    ] = None,
    rest: Annotated[
        str, typer.Option(help="Where everything but the experts comes from.", metavar="base|mean")
    ] = _DEFAULT.rest,
    weights: Annotated[
        str | None, typer.Option(help="Their weights in that mean.", metavar="W,...")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Examples for each label, for --router prompts.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Labelled text for --router data: a file or a Hub id.", metavar="ID|FILE"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = _DEFAULT.split,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = _DEFAULT.text_column,
    domain_column: Annotated[
        str | None, typer.Option(help="Column of each text's label.", metavar="NAME")
    ] = None,
    fit_tokens: Annotated[
        int, typer.Option(help="Tokens that routers are fitted to.")
    ] = _DEFAULT.fit_tokens,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a block of text.")] = None,
    entropy: Annotated[
        float | None,
        typer.Option(
            help="Normalised entropy of routers from text; left out, as sure as the text allows."
        ),
    ] = _DEFAULT.entropy,
    route_by: Annotated[
        str, typer.Option(help="What a router decides for.", metavar="token|sequence")
    ] = _DEFAULT.route_by,
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
    checksum: ChecksumOption = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan's totals and stop.")] = False,
    push_to: PushToOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn the feed-forward layers of a dense checkpoint into experts."""
    text = RouterTextConfig(
        router=cast(RouterStart, router), seed=seed, prompts=prompts, dataset=dataset, split=split,
        text_column=text_column, domain_column=domain_column, fit_tokens=fit_tokens,
        seq_len=seq_len, entropy=entropy,
    )  # fmt: skip
    out = Output(as_json=as_json, quiet=quiet)
    check_push_target(push_to)
    common: dict[str, Any] = {"labels": tuple(comma_list(labels)), "max_shard_size": max_shard_size,
              "revision": revision, "force": force, "checksum": checksum,
              **asdict(text)}  # fmt: skip
    own: dict[str, Any] = {"num_experts": experts, "top_k": top_k, "layers": layers, "noise": noise,
           "dtype": dtype, "compat": compat, "experts_from": source_list(experts_from),
           "rest": rest, "route_by": route_by,
           "weights": number_list("weights", weights)}  # fmt: skip
    if add_experts:
        refuse_others(own)
        written = add(out, source, output, source_list(add_experts), common, dry_run)
    else:
        written = _upcycle(out, source, output, UpcycleConfig(**own, **common), dry_run)
    if not dry_run:
        push_after(out, written, push_to)


def _upcycle(
    out: Output, source: str, output: Path | None, config: UpcycleConfig, dry_run: bool
) -> str:
    from moeify.upcycling.upcycle import upcycle

    with out.bytes_bar("upcycling") as progress:
        report = upcycle(source, output, config, dry_run=dry_run, progress=progress)
    revision = config.revision
    _show(out, report, source if revision is None else f"{source}@{revision}")
    return report.output


def _show(out: Output, report: UpcycleReport, source: str) -> None:
    out.document(report.to_dict())
    for warning in report.warnings:
        out.warning(warning)
    rows = [
        ("model", f"{report.family} -> {report.model_type}"),
        ("MoE layers", f"{len(report.moe_layers)} of {report.num_layers}"),
        ("experts", f"{report.num_experts}, top-{report.top_k}"
                    + (", one choice for a sequence" if report.route_by == "sequence" else "")),
        ("parameters", f"{count(report.params_dense)} dense -> {count(report.params_total)} total,"
                       f" {count(report.params_active)} active"),
        ("bytes", f"{size(report.bytes_written)}, {size(report.bytes_carried)} beside them"),
        *((f"from {origin.name}", f"experts {', '.join(map(str, origin.experts))}: {origin.label}")
          for origin in report.sources),
    ]  # fmt: skip
    if report.label_agreement is not None:
        rows.append(("routers", f"{report.label_agreement:.1%} of the tokens go to their label"))
    if not report.dry_run and (report.noise_effective or not report.sources):
        noise = f"asked for {report.noise_requested:g}, after rounding {report.noise_effective:.3g}"
        rows.append(("noise", noise))
    if not report.dry_run:
        rows.append(("time", f"{report.seconds:.1f} s"))
    verb = "would become" if report.dry_run else "became"
    out.table(f"{report.source} {verb} {report.output}", rows)
    if not report.dry_run:
        # Experts that differ from the base do not compute what it computes.
        check = f"inspect {report.output} --weights" if report.sources else None
        out.hint(f"moeify {check or f'verify {source} {report.output}'}")
