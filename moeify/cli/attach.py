"""``moeify attach``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from moeify.cli._options import (
    ChecksumOption,
    ForceOption,
    JsonOption,
    OutputArgument,
    QuietOption,
    RevisionOption,
    RouterOption,
    SeedOption,
    epilog,
)
from moeify.cli._output import Output, written
from moeify.routing.config import RouteBy, RouterInit
from moeify.upcycling.config import AttachConfig

if TYPE_CHECKING:
    from moeify.upcycling.attach import AttachReport

EPILOG = epilog(
    "moeify attach ./my-moe ./my-moe-fresh --router calibrated",
    "moeify attach Qwen/Qwen1.5-MoE-A2.7B ./top2 --router zeros --top-k 2",
)
_DEFAULT = AttachConfig()


def command(
    checkpoint: Annotated[str, typer.Argument(help="Mixture of experts: a folder or a Hub id.")],
    output: OutputArgument = None,
    router: RouterOption = _DEFAULT.router,
    top_k: Annotated[
        int | None, typer.Option(help="Experts that each token visits; unchanged if left out.")
    ] = None,
    route_by: Annotated[
        str | None,
        typer.Option(
            help="What a router decides for; unchanged if left out.", metavar="token|sequence"
        ),
    ] = None,
    seed: SeedOption = _DEFAULT.seed,
    revision: RevisionOption = None,
    force: ForceOption = False,
    checksum: ChecksumOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give a mixture of experts fresh routers, writing no other weight again."""
    config = AttachConfig(
        router=cast(RouterInit, router), top_k=top_k, route_by=cast(RouteBy | None, route_by),
        seed=seed, revision=revision, force=force, checksum=checksum,
    )  # fmt: skip
    from moeify.upcycling.attach import attach

    out = Output(as_json=as_json, quiet=quiet)
    with out.bytes_bar("writing routers") as progress:
        report = attach(checkpoint, output, config, progress=progress)
    _show(out, report)


def _show(out: Output, report: AttachReport) -> None:
    out.document(report.to_dict())
    for warning in report.warnings:
        out.warning(warning)
    missing = [layer for layer, outlook in report.before.items() if outlook is None]
    present = [outlook.entropy for outlook in report.before.values() if outlook is not None]
    before = f"normalised entropy {_mean(present):.2f} expected" if present else ""
    if missing:
        before = f"{before}{'; ' if before else ''}no router in {len(missing)} layers"
    after = [outlook.entropy for outlook in report.after.values()]
    zeroed = len(report.biases_zeroed)
    rows = [
        ("model", report.model_type),
        ("routers", f"{len(report.after)} layers, {report.num_experts} experts"),
        ("top-k", f"{report.top_k_before} -> {report.top_k}"),
        ("before", before),
        ("after", f"normalised entropy {_mean(after):.2f} expected"),
        ("biases", f"{zeroed} of the old routers set to zero" if zeroed else ""),
        ("bytes", written(report.bytes_written, report.files_linked, report.files_copied)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    out.table(f"{report.source} with fresh routers became {report.output}", rows)
    out.hint(f"moeify warmup {report.output} --dataset FILE")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
